"""Embedding models: texts as vectors of length 1, whose dot product says how near two meanings are.

static          a table of word pieces' vectors, whose mean a text is (WordLlama, 2024; in the extra `embeddings`): works offline, fast
FOLDER, hub:NAME  a transformer in the Hugging Face layout, whose last states over a text's tokens are averaged
URL#MODEL       an OpenAI-compatible server (vLLM's pooling, say); its key is $OPENAI_API_KEY
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.errors import UserError
from engine.plan.model_folder import json_object, loading
from engine.redaction import declare, redacted
from engine.store.digest import digest_file, digest_folder, digest_json

STATIC = "static"
TOKENS = 512  # of a text that are read, at most
ROWS = 32
KEY = "OPENAI_API_KEY"
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "1_Pooling/*.json")
Vectors = NDArray[np.float32]


class EmbeddingModel(Protocol):
    """A model that embeds."""

    def texts(self, texts: Sequence[str]) -> Vectors:
        """(texts, width) vectors of passages, of length 1; zeros for a text of which the model knows nothing."""
        ...

    def question(self, text: str) -> Vectors:
        """(width,) the vector of a question."""
        ...


def digest_of_model(name: str, base: str | Path) -> str:
    """What tells one embedding model from another: the digest of its files; of a hub's or a server's its name.

    Raises:
        UserError: it is not there.
    """
    if name == STATIC:
        return digest_json([digest_file(file) for file in _static_files()])
    if "://" in name or name.startswith("hub:"):
        return name
    return digest_json(digest_folder(_folder(name, base)))


def open_embedding(name: str, base: str | Path) -> EmbeddingModel:
    """The embedding model of this name.

    Args:
        base: the folder that a relative one is relative to.

    Raises:
        UserError: it is not there, or can't be loaded.
    """
    if name == STATIC:
        return StaticTable(*_static_files())
    if "://" in name:
        return EmbeddingServer(name)
    location = name.removeprefix("hub:") if name.startswith("hub:") else str(_folder(name, base))
    return TransformerEmbedding(location)


def _folder(name: str, base: str | Path) -> Path:
    folder = Path(base) / Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise UserError(
            f"there is no embedding model `{name}`: {folder} has no config.json. Expected `{STATIC}`, a folder in the Hugging Face "
            "layout, `hub:NAME`, or a server as `URL#MODEL`."
        )
    return folder


def _static_files() -> tuple[Path, Path]:
    found = importlib.util.find_spec("wordllama")
    if found is None or not found.submodule_search_locations:
        raise UserError("the embedding `static` is not installed: pip install 'flywheel[embeddings]'.")
    place = Path(next(iter(found.submodule_search_locations)))
    table, tokenizer = (
        place / "weights" / "l2_supercat_256.safetensors",
        place / "tokenizers" / "l2_supercat_tokenizer_config.json",
    )
    if not (table.is_file() and tokenizer.is_file()):
        raise UserError(f"{place} lacks {table.name} or {tokenizer.name}: install 'flywheel[embeddings]' anew.")
    return table, tokenizer


class StaticTable:
    """The mean of the vectors of a text's word pieces. Weights by the rarity of pieces would depend on what else is in an index; by their
    rank, which would not, nothing more was found (docs/log.md)."""

    def __init__(self, table: Path, tokenizer: Path) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        (rows,) = load_file(table).values()
        self._table: Vectors = rows.astype(np.float32, copy=False)
        self._tokenizer: Any = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def texts(self, texts: Sequence[str]) -> Vectors:
        made = np.zeros((len(texts), self._table.shape[1]), np.float32)
        for at in range(0, len(texts), 1000):
            batch = list(texts[at : at + 1000])
            for row, encoded in enumerate(self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)):
                if encoded.ids:
                    made[at + row] = self._table[encoded.ids].mean(0)
        return of_length_one(made)

    def question(self, text: str) -> Vectors:
        return self.texts([text])[0]


class TransformerEmbedding:
    """A transformer's last hidden states, averaged over a text's tokens; the first one alone where the model says so (`1_Pooling`)."""

    def __init__(self, location: str) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        with loading(location, "embedding model"):
            self._tokenizer: Any = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
            self._network: Any = AutoModel.from_pretrained(location, trust_remote_code=False).eval()
        self._tokenizer.padding_side = "right"
        self._most = min(TOKENS, int(getattr(self._network.config, "max_position_embeddings", TOKENS)))
        pooling, prompts = (
            Path(location) / "1_Pooling" / "config.json",
            Path(location) / "config_sentence_transformers.json",
        )
        self._first = pooling.is_file() and bool(json_object(pooling).get("pooling_mode_cls_token"))
        told: Any = json_object(prompts).get("prompts") if prompts.is_file() else None
        said: dict[str, str] = told if isinstance(told, dict) else {}
        self._before = said.get("passage") or said.get("document") or "", said.get("query") or ""
        if torch.cuda.is_available():
            self._network.to("cuda")
        else:
            torch.set_num_threads(1)  # in sums that threads share, their number may change the last bit

    def texts(self, texts: Sequence[str]) -> Vectors:
        return self._embed([self._before[0] + text for text in texts])

    def question(self, text: str) -> Vectors:
        return self._embed([self._before[1] + text])[0]

    def _embed(self, texts: list[str]) -> Vectors:
        import torch

        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))  # those of a length together: less padding
        made: Vectors | None = None
        for at in range(0, len(texts), ROWS):
            rows = order[at : at + ROWS]
            inputs = self._tokenizer(
                [texts[i] or " " for i in rows],
                padding=True,
                truncation=True,
                max_length=self._most,
                return_tensors="pt",
            ).to(self._network.device)
            with torch.inference_mode():
                states_BTD = self._network(**inputs).last_hidden_state.float()
            mask_BT1 = inputs["attention_mask"].unsqueeze(-1)
            mean_BD = states_BTD[:, 0] if self._first else (states_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
            vectors = mean_BD.cpu().numpy()
            made = np.zeros((len(texts), vectors.shape[1]), np.float32) if made is None else made
            made[rows] = vectors
        return of_length_one(made if made is not None else np.zeros((0, 1), np.float32))


class EmbeddingServer:
    """A model behind an OpenAI-compatible server.

    Args:
        name: `http://127.0.0.1:8000/v1#MODEL`.
    """

    def __init__(self, name: str) -> None:
        self._url, _, self._model = name.partition("#")
        if not self._model:
            raise UserError(f"the embedding server `{redacted(name)}` names no model; expected `URL#MODEL`.")
        if redacted(name) != name:
            raise UserError(f"there is a secret in {redacted(name)}; expected the bare URL, with the key in ${KEY}.")
        declare(KEY)
        import openai

        self._client = openai.OpenAI(
            base_url=self._url, api_key=os.environ.get(KEY) or "none", timeout=120, max_retries=4
        )

    def texts(self, texts: Sequence[str]) -> Vectors:
        parts = [self._ask([text or " " for text in texts[at : at + ROWS]]) for at in range(0, len(texts), ROWS)]
        return of_length_one(np.concatenate(parts)) if parts else np.zeros((0, 1), np.float32)

    def question(self, text: str) -> Vectors:
        return self.texts([text])[0]

    def _ask(self, texts: list[str]) -> Vectors:
        import openai

        try:
            answer = self._client.embeddings.create(model=self._model, input=texts, encoding_format="float")
            vectors = np.array([one.embedding for one in sorted(answer.data, key=lambda one: one.index)], np.float32)
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise UserError(
                f"the embedding server {self._url} does not answer for `{self._model}`: {redacted(str(error))[:300]}"
            ) from None
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise UserError(
                f"the embedding server {self._url} gave vectors of shape {vectors.shape} for {len(texts)} texts; expected one, finite, each."
            )
        return vectors


def of_length_one(vectors: Vectors) -> Vectors:
    """Rows at length 1; a row of zeros stays one."""
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norm, 1e-12)
