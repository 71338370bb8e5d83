"""Digests, signatures and band keys of documents: what `dedup` knows of them without their text.

In memory are 4 bytes a document, and 4 more for one that has a signature; the rest is on disk, band keys a file a band.
Kept as an `index`, it lets later documents be compared with these without reading them again.

    index/index.json        how the signatures were made
    index/keys.npy          (N, 2) uint64: documents with equal keys have the same words
    index/counts.npy        (N,) uint32 shingles; rows are those of the artifact's data, in order
    index/signatures.npy    (S, permutations) uint32, of the documents with two shingles or more
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import xxhash

from engine.errors import UserError
from engine.stage.job import Job
from engine.store.artifact import Artifact
from pipelines.dedup.minhash import Banding, permutations, sign_texts
from pipelines.dedup.stage import Dedup
from pipelines.texts.columns import Array, Texts, column, texts_of
from pipelines.texts.documents import Documents
from pipelines.texts.forms import whole_forms

CHUNK = 1 << 14  # signatures that are read at a time
WINDOW = 8 << 20  # bytes of a file that are mapped at a time


def digests(texts: Texts, salt: bytes = b"") -> Array:
    """(N, 2) uint64: 128 bits of XXH3 of each text's normal form, white space collapsed."""
    texts = whole_forms(texts).texts
    data, cuts = memoryview(cast(Any, texts.data)), texts.offsets.tolist()
    made = bytearray()
    for begin, end in itertools.pairwise(cuts):
        text = data[begin:end]
        made += xxhash.xxh3_128_digest(salt + bytes(text) if salt else text)
    return np.frombuffer(bytes(made), np.uint64).reshape(-1, 2)


@dataclass(frozen=True)
class Signatures:
    """What is known of documents.

    Attributes:
        counts: (N,) uint32: shingles, repeats included.
        rows: (S,) int32: which documents have a signature.
        fixed: how many documents, the first ones, come from an index.
    """

    folder: Path
    banding: Banding
    counts: Array
    rows: Array
    fixed: int

    def keys(self) -> Array:
        """(N, 2) uint64: documents with equal keys have the same words."""
        return np.fromfile(self.folder / "keys", np.uint64).reshape(-1, 2)

    def lengths(self) -> Array:
        """(N,) int32: bytes; 0 for those of an index."""
        return np.fromfile(self.folder / "lengths", np.int32)

    def band(self, index: int, places: Array | None = None) -> Array:
        """(S,) uint64: the keys of a band, or those with these (sorted) numbers."""
        file = self.folder / _band(index)
        return np.fromfile(file, np.uint64) if places is None else self._picked(file, np.uint64, 1, places).ravel()

    def signatures(self, places: Array) -> Array:
        """(P, permutations) uint32: the signatures with these (sorted) numbers."""
        return self._picked(self.folder / "signatures", np.uint32, self.banding.permutations, places)

    def _picked(self, file: Path, kind: type[Any], width: int, places: Array) -> Array:
        """(P, width): rows of a file of S rows."""
        made = np.empty((len(places), width), kind)
        size = width * made.itemsize
        # A window of the file at a time: pages that are mapped count as memory.
        for begin in range(0, len(self.rows), WINDOW // size):
            low, high = np.searchsorted(places, [begin, begin + WINDOW // size])
            if high > low:
                shape, offset = (min(WINDOW // size, len(self.rows) - begin), width), begin * size
                window = np.memmap(file, kind, "r", offset, shape)
                made[low:high] = window[places[low:high] - begin]
        return made

    @staticmethod
    def make(
        job: Job, documents: Documents, folder: Path, ngram: int, banding: Banding, old: list[Artifact]
    ) -> Signatures:
        """Read what the indexes of `old` hold, then the documents, whose texts are kept."""
        folder.mkdir(parents=True)
        a, b = permutations(banding.permutations)
        indexes = [_SavedIndex(artifact, ngram, banding) for artifact in old]
        fixed = sum(len(index.keys) for index in indexes)
        counts, at = np.empty(fixed + documents.rows, np.uint32), 0
        with contextlib.ExitStack() as stack:
            keys, lengths, signatures, *bands = (
                stack.enter_context((folder / name).open("wb"))
                for name in ("keys", "lengths", "signatures", *map(_band, range(banding.bands)))
            )
            for index in indexes:
                keys.write(index.keys.tobytes())
                counts[at : at + len(index.keys)] = index.counts
                at += len(index.keys)
                for chunk in index.signatures():
                    signatures.write(chunk.tobytes())
                    for band, file in enumerate(bands):
                        file.write(banding.keys(chunk, band).tobytes())
            lengths.write(bytes(4 * fixed))
            for start, batch in documents.batches(["text"], keep=True):
                texts = texts_of(batch.column("text"))
                made = sign_texts(texts, ngram, banding, a, b)
                wordless = np.flatnonzero(made.counts == 0)
                if len(wordless):
                    made.keys[wordless] = digests(texts_of(batch.column("text").take(column(wordless))), b"no words")
                many = np.flatnonzero(made.counts >= 2)
                signatures.write(made.signatures[many].tobytes())
                for file, band_keys in zip(bands, made.bands, strict=True):
                    file.write(band_keys[many].tobytes())
                keys.write(made.keys.tobytes())
                lengths.write(np.diff(texts.offsets).astype(np.int32).tobytes())
                counts[fixed + start : fixed + start + len(batch)] = made.counts
                job.progress(start + len(batch), documents.rows, "rows", doing="signatures")
        return Signatures(folder, banding, counts, np.flatnonzero(counts >= 2).astype(np.int32), fixed)

    def save_index(self, folder: Path, kept: Array, ngram: int) -> None:
        """Write the index of these (sorted) documents; each is a row of the artifact's data, in this order."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "keys.npy", self.keys()[kept])
        np.save(folder / "counts.npy", self.counts[kept])
        places = np.flatnonzero(np.isin(self.rows, kept))
        made = np.lib.format.open_memmap(
            folder / "signatures.npy", "w+", np.uint32, (len(places), self.banding.permutations)
        )
        for start in range(0, len(places), CHUNK):
            made[start : start + CHUNK] = self.signatures(places[start : start + CHUNK])
        made.flush()
        facts = {"version": Dedup.version, "ngram": ngram, "bands": self.banding.bands, "rows": self.banding.rows}
        facts["documents"] = len(kept)
        (folder / "index.json").write_text(json.dumps(facts))


def _band(index: int) -> str:
    return f"band-{index:03d}"


class _SavedIndex:
    """The index of an earlier `dedup`.

    Raises:
        UserError: the artifact has none, or one that was made in another way.
    """

    def __init__(self, artifact: Artifact, ngram: int, banding: Banding) -> None:
        folder = artifact.path / "index"
        if not (folder / "index.json").exists():
            raise UserError(f"{artifact.id} has no index; run that `dedup` with `save_index: true`.")
        facts: dict[str, Any] = json.loads((folder / "index.json").read_text())
        if facts.get("version") != Dedup.version:
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
        self.keys: Array = np.load(folder / "keys.npy")
        self.counts: Array = np.load(folder / "counts.npy")
        self._file = folder / "signatures.npy"

    def signatures(self) -> Iterator[Array]:
        mapped = np.load(self._file, mmap_mode="r")
        for start in range(0, len(mapped), CHUNK):
            yield np.array(mapped[start : start + CHUNK])
