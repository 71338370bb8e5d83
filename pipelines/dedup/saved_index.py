"""Signatures that are kept with an artifact, so that later documents can be compared with its rows without reading them again.

index/index.json        how the signatures were made
index/keys.npy          (N, 2) uint64: documents with equal keys have the same words
index/counts.npy        (N,) uint32 shingles; rows are those of the artifact's data, in order
index/signatures.npy    (S, permutations) uint32, of the documents with two shingles or more
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import UserError
from engine.store.artifact import Artifact
from pipelines.dedup.minhash import Banding
from pipelines.dedup.shuffle import Columns

VERSION = 3  # of the words, keys and signatures; raised where they become others


class SavedIndex:
    """The index of an earlier `dedup`.

    Raises:
        UserError: the artifact has none, or one that was made in another way.
    """

    def __init__(self, artifact: Artifact, ngram: int, banding: Banding) -> None:
        folder = artifact.path / "index"
        if not (folder / "index.json").exists():
            raise UserError(f"{artifact.id} has no index; run that `dedup` with `save_index: true`.")
        facts: dict[str, Any] = json.loads((folder / "index.json").read_text())
        if facts.get("version") != VERSION:
            raise UserError(
                f"the index of {artifact.id} was made by an earlier Flywheel, which took other stretches of text for words; "
                "run that `dedup` anew."
            )
        wanted = {"ngram": ngram, "bands": banding.bands, "rows": banding.rows}
        differ = [f"{name} {facts[name]} there, {value} here" for name, value in wanted.items() if facts[name] != value]
        if differ:
            raise UserError(
                f"the index of {artifact.id} was made with other settings: {', '.join(differ)}. Give the same "
                "`threshold`, `recall`, `permutations` and `ngram`."
            )
        self._keys, self._counts, self._signatures = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("keys", "counts", "signatures")
        )

    def rows(self, begin: int, end: int) -> Columns:
        """Keys, counts and signatures of these documents."""
        first = int((self._counts[:begin] >= 2).sum())
        counts = np.array(self._counts[begin:end])
        signatures = np.array(self._signatures[first : first + int((counts >= 2).sum())])
        return {"key": np.array(self._keys[begin:end]), "counts": counts, "signatures": signatures}


def save_index(folder: Path, ngram: int, banding: Banding, parts: Iterable[Columns]) -> None:
    """Write an index; each document is a row of the artifact's data, in this order."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes: dict[str, tuple[type[Any], tuple[int, ...]]] = {
        "key": (np.uint64, (2,)),
        "counts": (np.uint32, ()),
        "signatures": (np.uint32, (banding.permutations,)),
    }
    files = {"key": "keys", "counts": "counts", "signatures": "signatures"}
    rows = dict.fromkeys(shapes, 0)
    raw = {name: (folder / f"{name}.raw") for name in shapes}
    opened = {name: file.open("wb") for name, file in raw.items()}
    for part in parts:
        for name, file in opened.items():
            file.write(np.ascontiguousarray(part[name]).tobytes())
            rows[name] += len(part[name])
    for name, (kind, shape) in shapes.items():
        opened[name].close()
        _with_header(raw[name], folder / f"{files[name]}.npy", np.dtype(kind), (rows[name], *shape))
    facts = {"version": VERSION, "ngram": ngram, "bands": banding.bands, "rows": banding.rows}
    facts["documents"] = rows["counts"]
    (folder / "index.json").write_text(json.dumps(facts))


def _with_header(raw: Path, file: Path, kind: np.dtype[Any], shape: tuple[int, ...]) -> None:
    made: Any = np.lib.format.open_memmap(file, "w+", kind, shape)
    if made.size:
        made[...] = np.memmap(raw, kind, "r", shape=shape)
        made.flush()
    raw.unlink()
