"""Texts to ids: through the cache over pretokens where a tokenizer allows it, else by the tokenizer itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pipelines.texts.columns import Array, Texts
from pipelines.tokenize.pretokens import PretokenCache, fits


class Encoder:
    """Text -> ids, without special tokens; text that looks like a special token stays text.

    Args:
        model: the tokenizer, as tokenizer.json has it.

    Attributes:
        eos: the id that ends a document.
        vocab_size: ids are below this.
    """

    def __init__(self, model: str, eos: int, vocab_size: int) -> None:
        self.eos, self.vocab_size, self._model = eos, vocab_size, model
        self.dtype: np.dtype[Any] = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self._backend: Any = Tokenizer.from_str(model)
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        self._cache = PretokenCache(self._encode) if fits(model) else None

    @staticmethod
    def load(folder: Path) -> Encoder:
        """The encoder of a tokenizer in the Hugging Face layout."""
        from pipelines.tokenize.tokenizer_files import load  # a second of imports, which who only encodes does without

        tokenizer = load(str(folder))
        return Encoder(tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id, len(tokenizer))

    def __reduce__(self) -> Any:
        return Encoder, (self._model, self.eos, self.vocab_size)

    def encode(self, texts: Texts) -> list[Array]:
        """The ids of each text."""
        if self._cache is not None:
            return self._cache.encode(texts)
        cuts = zip(texts.offsets[:-1].tolist(), texts.offsets[1:].tolist(), strict=True)
        return [np.array(ids, np.uint32) for ids in self._encode([texts.data[a:b].tobytes().decode() for a, b in cuts])]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
