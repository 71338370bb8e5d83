"""Documents whose embeddings by a model are near each other: embedded slice by slice, compared in one task, and written as all methods
write (`pipelines.dedup.writing`).
"""

from __future__ import annotations

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
from pipelines.dedup.groups import cut
from pipelines.dedup.near import RESOLVED
from pipelines.dedup.neighbours import near
from pipelines.dedup.phases import Phases
from pipelines.dedup.preference import Preference, ordered
from pipelines.dedup.shuffle import Shuffle, Table, ends_of
from pipelines.dedup.signatures import Signed
from pipelines.dedup.stage import Dedup
from pipelines.texts.columns import Array, texts_of
from pipelines.texts.kept_texts import KeptTexts

TOKENS = 512  # of a document that are read, at most
ROWS = 32
SLICE = 32 * ROWS
FOLDER, EMBEDDED = "embeddings", "embedded"


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
    names = [f"{EMBEDDED}/{piece.index:06d}" for piece in slices]
    (facts,) = job.spread(Comparing, [0], stage, begins, names)
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


class Comparing:
    """Finds which documents go in favour of which.

    Args:
        begins: (groups + 1,) the number of the first document of each group.
        names: of the files with embeddings, in order.
    """

    def __init__(self, job: Job, stage: Dedup, begins: Array, names: list[str]) -> None:
        self._shuffle, self._stage, self._begins, self._names = Shuffle(job, FOLDER), stage, begins, names

    def __call__(self, _: int) -> dict[str, Any]:
        name = f"{RESOLVED}/000000"
        if (known := self._shuffle.facts(name)) is not None:
            return known
        rows = self._shuffle.gather(self._names, "rows")
        order = ordered(rows["trust"], rows["worth"])
        with threadpool_limits(1):
            by, like = near(rows["vectors"], order, self._stage.threshold, int(self._stage.memory_gb * 1e9))
        gone = np.flatnonzero(by >= 0)
        pair = {"document": gone, "kept": by[gone], "likeness": like[gone]}
        none = np.zeros(0, np.int64)
        nowhere = np.zeros(len(self._begins), np.int64)
        return self._shuffle.put(
            name,
            {"semantic": len(gone)},
            removed=Table.sorted_by(gone, self._begins, **pair),
            asked=Table.sorted_by(by[gone], self._begins, document=gone, kept=by[gone]),
            evidence=Table({"kept": none, "length": none, "values": none.astype(np.uint64)}, nowhere, {}),
        )


def _location(stage: Dedup, job: Job) -> str:
    """The model's folder or its name on a hub."""
    artifact = job.maybe("model")
    if artifact is not None:
        return artifact.location
    if stage.model is None:
        raise UserError("`method: semantic` needs a model for embeddings: the `model` input, or `model: FOLDER`.")
    folder = Path(job.base) / stage.model
    return str(folder) if folder.is_dir() else stage.model
