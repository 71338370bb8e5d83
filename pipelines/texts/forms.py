"""The forms under which texts are compared (see `engine.text`), for a column at a time and with the way back to the text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.kernels.compiled import kernel
from pipelines.kernels.form_table import GROWTH, form_table
from pipelines.texts.columns import Array, Texts

_word_forms = kernel("pipelines.kernels.form_writer", "word_forms")
_whole_forms = kernel("pipelines.kernels.form_writer", "whole_forms")


@dataclass(frozen=True)
class Forms:
    """Forms of texts.

    Attributes:
        texts: the forms, as many as there are texts.
        source: what they are forms of.
        origin: for each byte of the forms, where in `source.data` the character begins that it stands for; empty where that
            was not asked for, None where the forms are the texts.
    """

    texts: Texts
    source: Texts
    origin: Array | None

    def spans(self, spans: Array) -> Array:
        """(N, 2) places in the forms' bytes -> the places in the source's bytes of the characters that they stand for."""
        if self.origin is None or not len(spans):
            return spans
        first = self.origin[np.minimum(spans[:, 0], len(self.origin) - 1)]
        last = self.origin[np.maximum(spans[:, 1] - 1, 0)]
        lead = self.source.data[last]
        size = 1 + (lead >= 0xC0).astype(np.int64) + (lead >= 0xE0) + (lead >= 0xF0)
        return np.stack([first, np.where(spans[:, 1] > spans[:, 0], last + size, first)], 1)


def word_forms(texts: Texts, origin: bool = False) -> Forms:
    """The words of each text in their normal form, for `pipelines.kernels.word_hashes`; ASCII is its own form."""
    beyond = _beyond_ascii(texts)
    if not beyond:
        return Forms(texts, texts, None)
    room = _size(texts) + (GROWTH - 1) * beyond + 64 + len(texts)
    out, ends = np.empty(room, np.uint8), np.zeros(len(texts), np.int64)
    places = np.empty(room if origin else 0, np.int64)
    size = _word_forms(texts.data, texts.offsets, *form_table(), out, ends, places)
    return Forms(Texts(out[:size], np.append(0, ends)), texts, places[:size])


def whole_forms(texts: Texts, newlines: int = 0, origin: bool = False) -> Forms:
    """The normal form of each text, its white space collapsed: to a line feed where it has so many of them, else to a space."""
    beyond = _beyond_ascii(texts)
    room = _size(texts) + (GROWTH - 1) * beyond + 64 + len(texts)
    out, ends = np.empty(room, np.uint8), np.zeros(len(texts), np.int64)
    places = np.empty(room if origin else 0, np.int64)
    table = form_table() if beyond else (np.zeros(1, np.uint32), np.zeros(1, np.int32))
    size = _whole_forms(texts.data, texts.offsets, *table, newlines, out, ends, places)
    return Forms(Texts(out[:size], np.append(0, ends)), texts, places[:size])


def _size(texts: Texts) -> int:
    return int(texts.offsets[-1] - texts.offsets[0])


def _beyond_ascii(texts: Texts) -> int:
    """How many bytes of the texts are no ASCII characters."""
    data = texts.data[texts.offsets[0] : texts.offsets[-1]]
    return int(np.count_nonzero(data >= 0x80)) if data.max(initial=0) >= 0x80 else 0
