"""Embeddings of documents by a model, and which documents are near by cosine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from engine.errors import UserError
from engine.plan.model_folder import loading
from engine.stage.job import Job
from pipelines.texts.columns import Array, texts_of
from pipelines.texts.documents import Documents

TOKENS = 512  # of a document that are read, at most
ROWS = 32


def embed(job: Job, model: str | None) -> tuple[Array, Array]:
    """(N, D) float32 of length 1, and (N,) bytes: the mean of a model's last hidden states over a text's tokens.

    Raises:
        UserError: there is no model, or it can't be loaded.
    """
    artifact = job.maybe("model")
    if artifact is None and model is None:
        raise UserError("`method: semantic` needs a model for embeddings: the `model` input, or `model: FOLDER`.")
    location = artifact.location if artifact is not None else model or ""
    if artifact is None and (Path(job.base) / location).is_dir():
        location = str(Path(job.base) / location)
    with loading(location, "embedding model"):
        tokenizer: Any = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
        network: Any = AutoModel.from_pretrained(location, trust_remote_code=False).eval()
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    most = min(TOKENS, int(getattr(network.config, "max_position_embeddings", TOKENS)))
    vectors: list[Array] = []
    lengths: list[Array] = [np.zeros(0, np.int64)]
    total = job.rows("documents")
    for start, batch in Documents(job.all("documents")).batches(["text"]):
        texts = [text or " " for text in batch.column("text").to_pylist()]
        lengths.append(np.diff(texts_of(batch.column("text")).offsets))
        for at in range(0, len(texts), ROWS):
            inputs = tokenizer(
                texts[at : at + ROWS], padding=True, truncation=True, max_length=most, return_tensors="pt"
            ).to(network.device)
            inputs.pop("token_type_ids", None)
            with torch.inference_mode():
                states_BTD = network(**inputs).last_hidden_state.float()
            mask_BT1 = inputs["attention_mask"].unsqueeze(-1)
            mean_BD = (states_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
            vectors.append(torch.nn.functional.normalize(mean_BD, dim=-1).cpu().numpy())
            job.progress(start + at, total, "rows", doing="embedding")
    return np.concatenate(vectors), np.concatenate(lengths)


def near(vectors: Array, order: Array, threshold: float, memory: int) -> tuple[Array, Array]:
    """Go through documents in `order`; each is kept unless its cosine with a kept one is `threshold` or more.

    All pairs are compared: N**2 / 2 products, in blocks that fit into `memory` bytes.

    Returns:
        (N,) the kept document that is nearest, or -1 for itself; (N,) the cosine of the two.
    """
    count, width = vectors.shape
    kept_by, similarity = np.full(count, -1, np.int64), np.zeros(count)
    kept = np.empty((count, width), np.float32)
    names = np.empty(count, np.int64)
    size = 0
    step = max(min(1024, memory // (8 * max(count, 1))), 1)
    for start in range(0, count, step):
        block = order[start : start + step]
        with_kept = vectors[block] @ kept[:size].T
        among = vectors[block] @ vectors[block].T
        first = size
        stays: list[int] = []
        for i, document in enumerate(block.tolist()):
            best, value = -1, -1.0
            if first:
                best = int(with_kept[i].argmax())
                value = float(with_kept[i, best])
                best = int(names[best])
            for j in stays:
                if among[i, j] > value:
                    best, value = int(block[j]), float(among[i, j])
            if best >= 0 and value >= threshold:
                kept_by[document], similarity[document] = best, min(value, 1.0)
                continue
            stays.append(i)
            kept[size], names[size] = vectors[document], document
            size += 1
    return kept_by, similarity
