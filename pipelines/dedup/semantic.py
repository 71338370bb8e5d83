"""Documents whose embeddings by a model are near each other: embedded slice by slice, compared in one task, and written as all methods
write (`pipelines.dedup.writing`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from transformers import AutoModel, AutoTokenizer

from engine.errors import UserError
from engine.plan.model_folder import loading
from engine.stage.job import Job
from engine.stage.slices import Slice, row_counts
from pipelines.dedup import neighbours
from pipelines.dedup.groups import cut
from pipelines.dedup.near import RESOLVED
from pipelines.dedup.phases import Phases
from pipelines.dedup.preference import Preference, ordered
from pipelines.dedup.shuffle import Columns, Shuffle, Table, ends_of
from pipelines.dedup.signatures import Signed
from pipelines.dedup.stage import Dedup
from pipelines.texts.columns import Array, texts_of
from pipelines.texts.kept_texts import KeptTexts

TOKENS = 512  # of a document that are read, at most
ROWS = 32
SLICE = neighbours.PLACED
FOLDER, EMBEDDED, PLACED, DIRECTIONS = "embeddings", "embedded", "placed", "directions/000000"


def remove_alike(stage: Dedup, job: Job) -> None:
    """Write the documents without those whose embeddings are near another's.

    Raises:
        UserError: there is no model, or it can't be loaded.
    """
    location = _location(stage, job)
    slices = job.slices("documents", SLICE)
    total, done = job.rows("documents"), 0
    on_gpu = torch.cuda.is_available()
    for rows in job.spread(Embedding, slices, stage, location, width=1 if on_gpu else None):
        done += rows
        job.progress(done, total, "rows", doing="embedding")
    groups = cut(job, "documents")
    counts = [dict(row_counts(artifact)) for artifact in job.all("documents")]
    rows = [[counts[number][name] for number, name in group.files] for group in groups]
    begins = ends_of(np.array([sum(told) for told in rows], np.int64))
    pieces = [f"{piece.index:06d}" for piece in slices]
    if total > neighbours.ALL_PAIRS:
        (_,) = job.spread(Directing, [0], stage, pieces, total)
        for index, _ in enumerate(job.spread(Placing, pieces)):
            job.progress(index + 1, len(pieces), "slices", doing="placing")
    (facts,) = job.spread(Comparing, [0], stage, begins, pieces)
    signed = [Signed(told, {}) for told in rows]
    phases = Phases(stage, job, KeptTexts(0), FOLDER, None, groups, 0, 0, signed, begins, 0)
    phases.write(facts, [], [f"{RESOLVED}/000000"])


class Embedding:
    """Embeds slices of the documents: the mean of a model's last hidden states over a text's tokens, at length 1."""

    def __init__(self, job: Job, stage: Dedup, location: str) -> None:
        self._job, self._shuffle = job, Shuffle(job, FOLDER)
        self._preference = Preference(stage)
        with loading(location, "embedding model"):
            self._tokenizer: Any = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
            self._network: Any = AutoModel.from_pretrained(location, trust_remote_code=False).eval()
        self._tokenizer.padding_side = "right"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._most = min(TOKENS, int(getattr(self._network.config, "max_position_embeddings", TOKENS)))
        if torch.cuda.is_available():
            self._network.to("cuda")
        else:
            torch.set_num_threads(1)  # in sums that threads share, their number may change the last bit

    def __call__(self, piece: Slice) -> int:
        name = f"{EMBEDDED}/{piece.index:06d}"
        if self._shuffle.facts(name) is None:
            table = self._job.table(piece, ["text", *self._preference.columns])
            (batch,) = table.to_batches()
            lengths = np.diff(texts_of(table.column("text")).offsets)
            trust, worth = self._preference.of(batch, lengths)
            texts: list[str] = [text or " " for text in table.column("text").to_pylist()]
            vectors = np.concatenate([self._embed(texts[at : at + ROWS]) for at in range(0, len(texts), ROWS)])
            self._shuffle.put(name, {}, rows=Table.whole(trust=trust, worth=worth, vectors=vectors))
        return piece.rows

    def _embed(self, texts: list[str]) -> Array:
        inputs = self._tokenizer(texts, padding=True, truncation=True, max_length=self._most, return_tensors="pt")
        inputs = inputs.to(self._network.device)
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            states_BTD = self._network(**inputs).last_hidden_state.float()
        mask_BT1 = inputs["attention_mask"].unsqueeze(-1)
        mean_BD = (states_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(mean_BD, dim=-1).cpu().numpy()


class Directing:
    """Draws the directions by which embeddings are placed, from rows that lie evenly among all."""

    def __init__(self, job: Job, stage: Dedup, pieces: list[str], count: int) -> None:
        self._shuffle, self._threshold, self._pieces, self._count = Shuffle(job, FOLDER), stage.threshold, pieces, count

    def __call__(self, _: int) -> None:
        if self._shuffle.facts(DIRECTIONS) is not None:
            return
        lists = neighbours.lists_for(self._count)
        chosen, start = neighbours.sample_rows(self._count, neighbours.A_HOME * lists), 0
        sample: list[Array] = []
        for piece in self._pieces:
            vectors = self._shuffle.part(f"{EMBEDDED}/{piece}", "rows")["vectors"]
            low, high = np.searchsorted(chosen, [start, start + len(vectors)])
            sample.append(vectors[chosen[low:high] - start])
            start += len(vectors)
        with threadpool_limits(1):
            made = neighbours.directions(np.concatenate(sample), lists, self._threshold)
        self._shuffle.put(DIRECTIONS, {}, rows=Table.whole(directions=made))


class Placing:
    """Finds the directions that the embeddings of a slice are nearest to."""

    def __init__(self, job: Job) -> None:
        self._shuffle = Shuffle(job, FOLDER)
        self._directions = self._shuffle.part(DIRECTIONS, "rows")["directions"]

    def __call__(self, piece: str) -> None:
        if self._shuffle.facts(f"{PLACED}/{piece}") is None:
            vectors = self._shuffle.part(f"{EMBEDDED}/{piece}", "rows")["vectors"]
            with threadpool_limits(1):
                probes = neighbours.nearest(vectors, self._directions)
            self._shuffle.put(f"{PLACED}/{piece}", {}, rows=Table.whole(probes=probes))


class Comparing:
    """Finds which documents go in favour of which.

    Args:
        begins: (groups + 1,) the number of the first document of each group.
        pieces: names of the slices, in order.
    """

    def __init__(self, job: Job, stage: Dedup, begins: Array, pieces: list[str]) -> None:
        self._job, self._shuffle, self._stage, self._begins = job, Shuffle(job, FOLDER), stage, begins
        self._pieces = pieces

    def __call__(self, _: int) -> dict[str, Any]:
        name = f"{RESOLVED}/000000"
        if (known := self._shuffle.facts(name)) is not None:
            return known
        rows = [self._shuffle.part(f"{EMBEDDED}/{piece}", "rows") for piece in self._pieces]
        order = ordered(*(np.concatenate([row[key] for row in rows]) for key in ("trust", "worth")))
        by, like, facts = self._few(rows, order) if len(order) <= neighbours.ALL_PAIRS else self._many(rows, order)
        gone = np.flatnonzero(by >= 0)
        pair = {"document": gone, "kept": by[gone], "likeness": like[gone]}
        none = np.zeros(0, np.int64)
        nowhere = np.zeros(len(self._begins), np.int64)
        return self._shuffle.put(
            name,
            {"semantic": len(gone), **facts},
            removed=Table.sorted_by(gone, self._begins, **pair),
            asked=Table.sorted_by(by[gone], self._begins, document=gone, kept=by[gone]),
            evidence=Table({"kept": none, "length": none, "values": none.astype(np.uint64)}, nowhere, {}),
        )

    def _few(self, rows: list[Columns], order: Array) -> tuple[Array, Array, dict[str, Any]]:
        vectors = np.concatenate([row["vectors"] for row in rows])
        with threadpool_limits(1):
            by, like = neighbours.near_all(vectors, order, self._stage.threshold, int(self._stage.memory_gb * 1e9))
        return by, like, {}

    def _many(self, rows: list[Columns], order: Array) -> tuple[Array, Array, dict[str, Any]]:
        """By their homes. Embeddings lie on disk, in the order of preference."""
        count, width = len(order), rows[0]["vectors"].shape[1]
        rank = np.empty(count, np.int64)
        rank[order] = np.arange(count)
        with tempfile.TemporaryFile(dir=self._job.scratch) as file:
            file.truncate(4 * count * width)
            vectors = np.memmap(file, np.float32, "r+", shape=(count, width))
            start = 0
            for row in rows:
                vectors[rank[start : start + len(row["vectors"])]] = row["vectors"]
                start += len(row["vectors"])
            placed = self._shuffle.gather([f"{PLACED}/{piece}" for piece in self._pieces], "rows")["probes"]
            homes = neighbours.Homes(np.asarray(vectors), placed[order])
            by, like = homes.near_in_order(order, self._stage.threshold)
            met, pairs = homes.recall(self._stage.threshold)
        found = round(met / pairs, 4) if pairs else None
        return by, like, {"recall": found, "pairs_in_sample": pairs}


def _location(stage: Dedup, job: Job) -> str:
    """The model's folder or its name on a hub."""
    artifact = job.maybe("model")
    if artifact is not None:
        return artifact.location
    if stage.model is None:
        raise UserError("`method: semantic` needs a model for embeddings: the `model` input, or `model: FOLDER`.")
    folder = Path(job.base) / stage.model
    return str(folder) if folder.is_dir() else stage.model
