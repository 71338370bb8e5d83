"""Texts to ids: through the cache over pretokens where a tokenizer allows it, else by the tokenizer itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipelines.texts.columns import Array, Texts
from pipelines.tokenize.pretokens import PretokenCache, fits
from pipelines.tokenize.tokenizer_files import load


class Encoder:
    """Text -> ids, without special tokens; text that looks like a special token stays text.

    Attributes:
        eos: the id that ends a document.
        vocab_size: ids are below this.
    """

    def __init__(self, folder: Path) -> None:
        tokenizer = load(str(folder))
        self.eos: int = tokenizer.eos_token_id
        self.vocab_size: int = len(tokenizer)
        self.dtype: np.dtype[Any] = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)
        self._backend: Any = tokenizer.backend_tokenizer
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()

        self._cache = PretokenCache(self._encode) if fits(self._backend.to_str()) else None

    def encode(self, texts: Texts) -> list[Array]:
        """The ids of each text."""
        if self._cache is not None:
            return self._cache.encode(texts)
        cuts = zip(texts.offsets[:-1].tolist(), texts.offsets[1:].tolist(), strict=True)
        return [np.array(ids, np.uint32) for ids in self._encode([texts.data[a:b].tobytes().decode() for a, b in cuts])]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
