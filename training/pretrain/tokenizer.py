"""The tokenizer beside token shards: whose ids they are, and the bytes of text that each stands for.

Shapes: V vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from transformers import AutoTokenizer

from engine.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "<|endoftext|>"


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside the shards; its separator ends a text and pads a batch.

    Raises:
        UserError: there is none, or it has no separator.
    """
    if not folder.is_dir():
        raise UserError(f"the shards have no tokenizer beside them ({folder}): make them with the `tokenize` stage.")
    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        if SEPARATOR not in tokenizer.get_vocab():
            raise UserError(f"the tokenizer in {folder} has neither an end-of-text token nor {SEPARATOR}.")
        tokenizer.eos_token = SEPARATOR
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """How many bytes of text each token stands for, (V,). Special tokens stand for none."""
    special = set(tokenizer.all_special_ids)
    backend = cast(Any, tokenizer).backend_tokenizer
    for index, token in backend.get_added_tokens_decoder().items():
        if token.special:
            special.add(index)
    # In a byte-level vocabulary each character of a token is one byte; otherwise the text of the token is asked for.
    byte_level = "ByteLevel" in json.dumps(json.loads(backend.to_str())["decoder"])
    sizes_V = np.zeros(len(tokenizer), np.int64)
    for token, index in tokenizer.get_vocab().items():
        if index not in special:
            sizes_V[index] = len(token) if byte_level else len(backend.decode([index]).encode())
    return sizes_V
