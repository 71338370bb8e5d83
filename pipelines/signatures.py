"""Digests, signatures and band keys of documents: what `dedup` knows of them without their text.

In memory are 20 bytes a document; signatures and band keys are on disk, the latter a file a band. Kept as an `index`,
they let later documents be compared with these without reading them again.

    index/index.json        how the signatures were made
    index/keys.npy          (N, 2) uint64: documents with equal keys have the same words
    index/counts.npy        (N,) uint32 shingles; rows are those of the artifact's data, in order
    index/signatures.npy    (S, permutations) uint32, of the documents with two shingles or more
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import xxhash

from engine.errors import UserError
from engine.job import Job
from engine.store import Artifact
from pipelines.columns import column
from pipelines.documents import Documents
from pipelines.minhash import Banding, permutations, sign_texts
from pipelines.shingles import Array, Texts, texts_of

CHUNK = 1 << 16  # rows of a file that are read at a time


def digests(texts: Texts, salt: bytes = b"") -> Array:
    """(N, 2) uint64: 128 bits of XXH3 of each text."""
    data, cuts = memoryview(cast(Any, texts.data)), texts.offsets.tolist()
    made = bytearray()
    for begin, end in itertools.pairwise(cuts):
        text = data[begin:end]
        made += xxhash.xxh3_128_digest(salt + bytes(text) if salt else text)
    return np.frombuffer(bytes(made), np.uint64).reshape(-1, 2)


@dataclass(frozen=True)
class Signed:
    """What is known of documents.

    Attributes:
        keys: (N, 2) uint64: documents with equal keys have the same words.
        counts: (N,) uint32: shingles, repeats included.
        lengths: (N,) int32: bytes.
        rows: (S,) int32: which documents have a signature.
        fixed: how many documents, the first ones, come from an index.
    """

    folder: Path
    banding: Banding
    keys: Array
    counts: Array
    lengths: Array
    rows: Array
    fixed: int

    def band(self, index: int) -> Array:
        """(S,) uint64: the keys of a band."""
        return np.fromfile(self.folder / f"band-{index:03d}", np.uint64)

    def signatures(self, places: Array) -> Array:
        """(P, permutations) uint32: the signatures with these (sorted) numbers."""
        file, width = self.folder / "signatures", self.banding.permutations
        made = np.empty((len(places), width), np.uint32)
        # A window of the file at a time: pages that are mapped count as memory.
        for begin in range(0, len(self.rows), CHUNK):
            low, high = np.searchsorted(places, [begin, begin + CHUNK])
            if high > low:
                shape = min(CHUNK, len(self.rows) - begin), width
                window = np.memmap(file, np.uint32, "r", offset=begin * 4 * width, shape=shape)
                made[low:high] = window[places[low:high] - begin]
        return made

    @staticmethod
    def make(job: Job, documents: Documents, folder: Path, ngram: int, banding: Banding, old: list[Artifact]) -> Signed:
        """Read what the indexes of `old` hold, then the documents, whose texts are kept."""
        folder.mkdir(parents=True)
        a, b = permutations(banding.permutations)
        indexes = [_Index(artifact, ngram, banding) for artifact in old]
        fixed = sum(len(index.keys) for index in indexes)
        # Whole from the start: arrays put together in the end are there twice.
        keys = np.empty((fixed + documents.rows, 2), np.uint64)
        counts, lengths = np.empty(len(keys), np.uint32), np.zeros(len(keys), np.int32)
        files = [(folder / f"band-{band:03d}").open("wb") for band in range(banding.bands)]
        with (folder / "signatures").open("wb") as signatures:
            at = 0
            for index in indexes:
                here = slice(at, at + len(index.keys))
                keys[here], counts[here] = index.keys, index.counts
                at = here.stop
                for chunk in index.signatures():
                    signatures.write(chunk.tobytes())
                    for band, file in enumerate(files):
                        file.write(banding.keys(chunk, band).tobytes())
            for start, batch in documents.batches(["text"], keep=True):
                texts = texts_of(batch.column("text"))
                made = sign_texts(texts, ngram, banding, a, b)
                wordless = np.flatnonzero(made.counts == 0)
                if len(wordless):
                    made.keys[wordless] = digests(texts_of(batch.column("text").take(column(wordless))), b"no words")
                many = np.flatnonzero(made.counts >= 2)
                signatures.write(made.signatures[many].tobytes())
                for file, band_keys in zip(files, made.bands, strict=True):
                    file.write(band_keys[many].tobytes())
                here = slice(fixed + start, fixed + start + len(batch))
                keys[here], counts[here], lengths[here] = made.keys, made.counts, np.diff(texts.offsets)
                job.progress(start + len(batch), documents.rows, "rows", doing="signatures")
        for file in files:
            file.close()
        return Signed(folder, banding, keys, counts, lengths, np.flatnonzero(counts >= 2).astype(np.int32), fixed)

    def save_index(self, folder: Path, kept: Array, ngram: int) -> None:
        """Write the index of these (sorted) documents; each is a row of the artifact's data, in this order."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "keys.npy", self.keys[kept])
        np.save(folder / "counts.npy", self.counts[kept])
        places = np.flatnonzero(np.isin(self.rows, kept))
        made = np.lib.format.open_memmap(
            folder / "signatures.npy", "w+", np.uint32, (len(places), self.banding.permutations)
        )
        for start in range(0, len(places), CHUNK):
            made[start : start + CHUNK] = self.signatures(places[start : start + CHUNK])
        made.flush()
        facts = {"ngram": ngram, "bands": self.banding.bands, "rows": self.banding.rows, "documents": len(kept)}
        (folder / "index.json").write_text(json.dumps(facts))


class _Index:
    """The index of an earlier `dedup`.

    Raises:
        UserError: the artifact has none, or one that was made in another way.
    """

    def __init__(self, artifact: Artifact, ngram: int, banding: Banding) -> None:
        folder = artifact.path / "index"
        if not (folder / "index.json").exists():
            raise UserError(f"{artifact.id} has no index; run that `dedup` with `save_index: true`.")
        facts: dict[str, Any] = json.loads((folder / "index.json").read_text())
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
