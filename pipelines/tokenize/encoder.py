"""Texts to ids: through the cache over pretokens where a tokenizer allows it, else by the tokenizer itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pipelines.texts.columns import Texts
from pipelines.tokenize.byte_level import ByteLevel
from pipelines.tokenize.pretokens import Ids, PretokenCache


class Encoder:
    """Text -> ids, without special tokens; text that looks like a special token stays text.

    Args:
        model: the tokenizer, as tokenizer.json has it. backend: the same, where it is read already.

    Attributes:
        eos: the id that ends a document.
        vocab_size: ids are below this.
        dtype: of ids.
    """

    def __init__(self, model: str, eos: int, vocab_size: int, backend: Any = None) -> None:
        self.eos, self.vocab_size, self._model = eos, vocab_size, model
        self.dtype: np.dtype[Any] = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self._backend: Any = backend or Tokenizer.from_str(model)
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        parts = ByteLevel.read(model)
        self._cache = PretokenCache(self._backend, parts, self.dtype) if parts else None

    @staticmethod
    def load(folder: Path) -> Encoder:
        """The encoder of a tokenizer in the Hugging Face layout, as `save_pretrained` writes it."""
        model = (folder / "tokenizer.json").read_text()
        backend = Tokenizer.from_str(model)
        told = json.loads((folder / "tokenizer_config.json").read_text()).get("eos_token")
        eos = backend.token_to_id(told["content"] if isinstance(told, dict) else told) if told else None
        if eos is None:
            from pipelines.tokenize.tokenizer_files import (
                load,  # a second of imports, which who only encodes does without
            )

            tokenizer = load(str(folder))
            return Encoder(tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id, len(tokenizer))
        return Encoder(model, eos, backend.get_vocab_size(), backend)

    def __reduce__(self) -> Any:
        return Encoder, (self._model, self.eos, self.vocab_size)

    def encode(self, texts: Texts, last: int = -1) -> Ids:
        """The ids of each text, and after them `last` if it is none below 0."""
        if self._cache is not None:
            return self._cache.encode(texts, last)
        strings = [
            texts.data[a:b].tobytes().decode() for a, b in zip(texts.offsets[:-1], texts.offsets[1:], strict=True)
        ]
        rows = [one.ids for one in self._backend.encode_batch_fast(strings, add_special_tokens=False)]
        if last >= 0:
            rows = [[*row, last] for row in rows]
        tokens = np.array([index for row in rows for index in row], self.dtype)
        return Ids(tokens, np.cumsum([len(row) for row in rows], dtype=np.int64))
