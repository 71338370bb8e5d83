"""Digests, signatures and band keys of documents: what `dedup` knows of them without their text. The first phase: a task a group of
files, which leaves

    keys        by range of hashes: a key a document (equal keys, equal words), how much it is preferred
    bands       by range of hashes: a key a band of each signature
    documents   counts of shingles and preference, in order
    signatures  (S, permutations) uint32, of the documents with two shingles or more
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import xxhash

from engine.stage.job import Job
from engine.stage.slices import row_counts
from pipelines.dedup.groups import Group
from pipelines.dedup.minhash import Banding, permutations, sign_texts
from pipelines.dedup.preference import Preference
from pipelines.dedup.saved_index import SavedIndex
from pipelines.dedup.shuffle import Columns, Shuffle, Table, joined
from pipelines.dedup.stage import Dedup
from pipelines.texts.columns import Array, Texts, column, texts_of
from pipelines.texts.documents import Documents, File
from pipelines.texts.forms import whole_forms
from pipelines.texts.kept_texts import KeptTexts, Place

SIGNED = "signed"


@dataclass(frozen=True)
class Signed:
    """What the signing of a group says: how many rows each of its files has, and where texts are that were kept in memory."""

    rows: list[int]
    places: dict[File, Place]


def digests(texts: Texts, salt: bytes = b"") -> Array:
    """(N, 2) uint64: 128 bits of XXH3 of each text's normal form, white space collapsed."""
    texts = whole_forms(texts).texts
    data, cuts = memoryview(cast(Any, texts.data)), texts.offsets.tolist()
    made = bytearray()
    for begin, end in itertools.pairwise(cuts):
        text = data[begin:end]
        made += xxhash.xxh3_128_digest(salt + bytes(text) if salt else text)
    return np.frombuffer(bytes(made), np.uint64).reshape(-1, 2)


class Signer:
    """Signs groups of documents, or reads what an index knows of those of its artifact.

    Args:
        banding: None where only exact copies are looked for.
        ranges: of hashes.
    """

    def __init__(
        self, job: Job, stage: Dedup, folder: str, banding: Banding | None, ranges: int, kept: KeptTexts
    ) -> None:  # fmt: skip
        self._job, self._stage, self._banding, self._ranges, self._kept = job, stage, banding, ranges, kept
        self._shuffle = Shuffle(job, folder)
        self._preference = Preference(stage)
        self._drawn = permutations(banding.permutations) if banding else None

    def __call__(self, group: Group) -> Signed:
        name = f"{SIGNED}/{group.name}"
        if (known := self._shuffle.facts(name)) is not None:
            return Signed(known["rows"], {})
        places: dict[File, Place] = {}
        if group.port == "index":
            rows, made = self._indexed(group)
        else:
            rows, made = self._signed(group, places)
        count = len(made["trust"])
        keys, local = made["key"], np.arange(count, dtype=np.uint32)
        tables = {
            "keys": Table.split(
                self._range(keys[:, 0]),
                self._ranges,
                key=keys,
                worth=made["worth"],
                trust=made["trust"],
                document=local,
            )
        }
        if self._banding:
            places_of = np.flatnonzero(made["counts"] >= 2).astype(np.uint32)
            bands = made["bands"].reshape(-1)
            tables["bands"] = Table.split(
                self._range(bands), self._ranges, key=bands, document=np.repeat(places_of, self._banding.bands)
            )
            tables["documents"] = Table.whole(
                counts=made["counts"], trust=made["trust"], worth=made["worth"],
                **({"key": keys} if self._stage.save_index else {}),
            )  # fmt: skip
            tables["signatures"] = Table.whole(signatures=made["signatures"])
        self._shuffle.put(name, {"rows": rows}, **tables)
        return Signed(rows, places)

    def _signed(self, group: Group, places: dict[File, Place]) -> tuple[list[int], Columns]:
        documents = Documents(self._job.all(group.port), group.files)
        shelf = self._kept.shelf(group.index, int(self._kept.size * group.share))
        rows = dict.fromkeys(group.files, 0)
        parts = [self._empty()]
        for file, batch in documents.by_file(["text", *self._preference.columns], shelf, places):
            texts = texts_of(batch.column("text"))
            trust, worth = self._preference.of(batch, np.diff(texts.offsets))
            part: Columns = {"trust": trust, "worth": worth}
            if self._banding is None or self._drawn is None:
                part["key"] = digests(texts)
            else:
                made = sign_texts(texts, self._stage.ngram, self._banding, *self._drawn)
                wordless = np.flatnonzero(made.counts == 0)
                if len(wordless):
                    made.keys[wordless] = digests(texts_of(batch.column("text").take(column(wordless))), b"no words")
                many = made.counts >= 2
                part |= {"key": made.keys, "counts": made.counts.astype(np.uint32)}
                part |= {"signatures": made.signatures[many], "bands": made.bands[:, many].T}
            parts.append(part)
            rows[file] += len(batch)
        return list(rows.values()), joined(parts)

    def _indexed(self, group: Group) -> tuple[list[int], Columns]:
        """What the index of an artifact knows of the documents in some of its files; all of them stay."""
        assert self._banding is not None
        parts, rows = [self._empty()], list[int]()
        for number, files in itertools.groupby(group.files, key=lambda file: file[0]):
            artifact = self._job.all("index")[number]
            index = SavedIndex(artifact, self._stage.ngram, self._banding)
            names, counts = zip(*row_counts(artifact), strict=True)
            begins = np.append(0, np.cumsum(counts))
            for _, name in files:
                place = names.index(name)
                part = index.rows(*begins[place : place + 2].tolist())
                bands = [self._banding.keys(part["signatures"], band) for band in range(self._banding.bands)]
                part |= {"bands": np.stack(bands, 1)}
                part |= {"trust": np.zeros(counts[place], np.uint32), "worth": np.zeros(counts[place])}
                parts.append(part)
                rows.append(counts[place])
        return rows, joined(parts)

    def _empty(self) -> Columns:
        empty: Columns = {"trust": np.zeros(0, np.uint32), "worth": np.zeros(0), "key": np.zeros((0, 2), np.uint64)}
        if self._banding:
            empty |= {"counts": np.zeros(0, np.uint32), "bands": np.zeros((0, self._banding.bands), np.uint64)}
            empty["signatures"] = np.zeros((0, self._banding.permutations), np.uint32)
        return empty

    def _range(self, keys: Array) -> Array:
        return ((keys >> np.uint64(32)) * np.uint64(self._ranges) >> np.uint64(32)).astype(np.int64)
