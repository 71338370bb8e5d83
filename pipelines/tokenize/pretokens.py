"""Encoding by a cache over pretokens: the ids of a Hugging Face byte-level BPE, many times faster.

A byte-level BPE cuts a text into pretokens (GPT-2's regular expression) and encodes each by itself, so the ids of a
pretoken never depend on its neighbours; and text repeats its pretokens. Here a kernel cuts Arrow's bytes into pretokens
and looks up each in a table; what is not there is encoded by the tokenizer itself, once.

A pretoken is known by 64 bits: among a million of them, two are taken for one with probability 3e-8. A text with a
character that this Python's Unicode tables do not know goes to the tokenizer whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from pipelines.kernels.characters import pretokens_table
from pipelines.kernels.compiled import kernel
from pipelines.texts.columns import Array, Texts

_number_pretokens = kernel("pipelines.kernels.pretoken_numbers", "number_pretokens")
_rehash = kernel("pipelines.kernels.pretoken_numbers", "rehash")
_expand = kernel("pipelines.kernels.pretoken_numbers", "expand")

MOST = 4_000_000  # pretokens that are remembered; then the table starts anew


class PretokenCache:
    """Encodes columns of texts.

    Args:
        encode: texts -> lists of ids, the tokenizer itself.
    """

    def __init__(self, encode: Callable[[list[str]], list[list[int]]]) -> None:
        self._encode = encode
        self._clear()

    def _clear(self) -> None:
        self._keys = np.zeros(1 << 16, np.uint64)
        self._slots = np.full(1 << 16, -1, np.int32)
        self._known = 0
        self._ids = np.zeros(1 << 16, np.uint32)  # of all pretokens, one after the other
        self._bounds = np.zeros(1 << 16, np.int64)  # where those of each begin; one more than pretokens

    def encode(self, texts: Texts) -> list[Array]:
        """The ids of each text, uint32."""
        made: list[Array] = []
        largest = texts.longest()
        while len(made) < len(texts):
            first = len(made)
            # as many texts as make a few megabytes, so that the buffers stay in the cache
            budget = texts.offsets[first] + max(largest, 4 << 20)
            last = int(np.searchsorted(texts.offsets, budget, side="right")) - 1
            made += self._encode_batch(Texts(texts.data, texts.offsets[first : max(last, first + 1) + 1]))
        return made

    def _encode_batch(self, texts: Texts) -> list[Array]:
        made: list[Array] = []
        size = int(texts.offsets[-1] - texts.offsets[0])
        found, ends = np.empty(size + 1, np.int32), np.empty(len(texts), np.int64)
        starts, stops = np.empty(size + 1, np.int64), np.empty(size + 1, np.int64)
        marks, tally = np.empty(size + 1, np.int64), np.zeros(3, np.int64)
        while len(made) < len(texts):
            first = len(made)
            after = _number_pretokens(
                texts.data, texts.offsets, first, pretokens_table(), self._keys, self._slots, self._known, MOST, found,
                ends, starts, stops, tally,
            )  # fmt: skip
            count, known, new = tally.tolist()
            self._learn(texts.data, starts[:new], stops[:new])
            assert self._known == known
            lengths = self._bounds[1 : known + 1] - self._bounds[:known]
            out = np.empty(int(lengths[found[:count]].sum()), np.uint32)
            _expand(found, count, self._bounds, self._ids, out, marks)
            begin = 0
            for index in range(first, after):
                end = int(ends[index - first])
                if end < 0:
                    text = texts.data[texts.offsets[index] : texts.offsets[index + 1]].tobytes().decode()
                    made.append(np.array(self._encode([text])[0], np.uint32))
                    continue
                made.append(out[marks[begin - 1] if begin else 0 : marks[end - 1] if end else 0])
                begin = end
            if after < len(texts):
                if known > MOST:
                    self._clear()
                else:
                    self._grow()
        return made

    def _learn(self, data: Array, starts: Array, stops: Array) -> None:
        if not len(starts):
            return
        pretokens = [data[a:b].tobytes().decode() for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
        encoded = self._encode(pretokens)
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        begin, count = int(self._bounds[self._known]), self._known
        self._known += len(encoded)
        while len(self._bounds) < self._known + 1:
            self._bounds = np.concatenate([self._bounds, np.zeros_like(self._bounds)])
        self._bounds[count + 1 : self._known + 1] = begin + np.cumsum(lengths)
        while len(self._ids) < self._bounds[self._known]:
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
        self._ids[begin : self._bounds[self._known]] = [i for ids in encoded for i in ids]

    def _grow(self) -> None:
        keys, slots = np.zeros(2 * len(self._keys), np.uint64), np.full(2 * len(self._slots), -1, np.int32)
        _rehash(self._keys, self._slots, keys, slots)
        self._keys, self._slots = keys, slots


def fits(tokenizer_json: str) -> bool:
    """Whether a tokenizer (as tokenizer.json) is a BPE over GPT-2's pretokens and nothing else that looks at text."""
    parts: dict[str, Any] = json.loads(tokenizer_json)
    pre = parts.get("pre_tokenizer") or {}
    model = parts.get("model") or {}
    return (
        parts.get("normalizer") is None
        and pre.get("type") == "ByteLevel"
        and not pre.get("add_prefix_space")
        and pre.get("use_regex", True)
        and model.get("type") == "BPE"
        and not model.get("dropout")
        and all(token["special"] for token in parts.get("added_tokens") or [])
    )
