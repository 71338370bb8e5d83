"""What a byte-level BPE is made of, read from a tokenizer.json: its pretokens, the ids of bytes, and merges."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from pipelines.kernels.compiled import kernel
from pipelines.texts.columns import Array
from pipelines.tokenize.derivations import Derivations

_enter = kernel("pipelines.kernels.pretoken_table", "enter")
_keys_of = kernel("pipelines.kernels.pretoken_table", "keys_of")

# As `pipelines.kernels.pretoken_ends` numbers them, which imports numba.
GPT2, DIGITS, LLAMA3, QWEN2, O200K = range(5)
_END = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASES = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PREFIX = r"[^\r\n\p{L}\p{N}]?"
PATTERNS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": GPT2,
    _SUFFIX + "|" + _PREFIX + r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _END: LLAMA3,
    _SUFFIX + "|" + _PREFIX + r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _END: QWEN2,
    f"{_PREFIX}[{_CASES[0]}]*[{_CASES[1]}]+{_SUFFIX}?|{_PREFIX}[{_CASES[0]}]+[{_CASES[1]}]*{_SUFFIX}?"
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _END: O200K,
}  # fmt: skip
IDS = 1 << 20  # ids are below this


@dataclass(frozen=True)
class ByteLevel:
    """
    Attributes:
        family: how a text is cut into pretokens.
        composed: texts are brought into NFC before.
        literals: what is a token wherever it stands in a text, although it is not special.
        byte_ids: (256,) uint32.
        merges, merge_shift: a table of pairs of ids (`pipelines.kernels.pretoken_table`): rank and id of what each becomes.
        vocabulary, vocabulary_shift: a table of pretokens that are a token as they are, whatever the merges; empty if merges decide.
        derivations: how merges make each token.
    """

    family: int
    composed: bool
    literals: tuple[bytes, ...]
    byte_ids: Array
    merges: Array
    merge_shift: int
    vocabulary: Array
    vocabulary_shift: int
    derivations: Derivations

    @staticmethod
    def read(tokenizer_json: str) -> ByteLevel | None:
        """None if it is another kind of tokenizer, or does something else to a text."""
        parts: dict[str, Any] = json.loads(tokenizer_json)
        model = parts.get("model") or {}
        family, normalizer = _family(parts.get("pre_tokenizer") or {}), parts.get("normalizer")
        if family is None or model.get("type") != "BPE" or (normalizer or {"type": "NFC"}) != {"type": "NFC"}:
            return None
        if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            return None
        vocab: dict[str, int] = model["vocab"]
        letters = alphabet()
        if any(letter not in vocab for letter in letters) or max(vocab.values()) >= IDS:
            return None
        literals = (token["content"] for token in parts.get("added_tokens") or [] if not token["special"])
        pairs: list[Any] = model["merges"]
        if pairs and isinstance(pairs[0], str):
            pairs = [pair.split(" ") for pair in pairs]
        names = itertools.chain(itertools.chain.from_iterable(pairs), map("".join, pairs))
        ids = np.fromiter(map(vocab.__getitem__, names), np.uint32, 3 * len(pairs))
        pairs_M3 = np.column_stack([ids[: 2 * len(pairs)].reshape(-1, 2), ids[2 * len(pairs) :]])
        left, right, made = pairs_M3.T.astype(np.uint64)
        ranks = np.arange(len(pairs), dtype=np.uint64)
        merges = table((left + np.uint64(1)) << np.uint64(32) | right, ranks << np.uint64(32) | made)
        tokens = [""] * (1 + max(vocab.values()))
        for token, index in vocab.items():
            tokens[index] = token
        spelling, bounds, plain = _bytes_of(tokens)
        byte_ids = np.array([vocab[letter] for letter in letters], np.uint32)
        keys, whole = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        if model.get("ignore_merges"):
            keys = np.empty(len(tokens), np.uint64)
            _keys_of(spelling, bounds, keys)
            keys, whole = keys[plain], np.flatnonzero(plain).astype(np.uint64) + np.uint64(1)
        return ByteLevel(
            family, normalizer is not None, tuple(sorted({one.encode() for one in literals if one})), byte_ids,
            *merges, *table(keys, whole), Derivations.of(tokens, spelling, bounds, pairs_M3, byte_ids, *merges),
        )  # fmt: skip


@cache
def alphabet() -> list[str]:
    """The character that stands for each byte in GPT-2's vocabulary and all that came after: itself where it can be seen."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in seen)
    return [
        char for _, char in sorted([*((b, chr(b)) for b in seen), *((b, chr(256 + n)) for n, b in enumerate(others))])
    ]


def table(keys: Array, values: Array) -> tuple[Array, int]:
    """A table with these keys and values, at most half full, and its shift."""
    bits = max(int(2 * len(keys)).bit_length(), 1)
    made = np.zeros(2 << bits, np.uint64)
    if len(keys):
        _enter(keys, values, made, 64 - bits)
    return made, 64 - bits


def _bytes_of(tokens: list[str]) -> tuple[Array, Array, Array]:
    """The bytes of all tokens and 64 more, where those of each begin (V + 1), and which have but bytes, and some."""
    places = np.full(512, 256, np.uint16)
    places[[ord(letter) for letter in alphabet()]] = np.arange(256)
    letters = np.frombuffer("".join(tokens).encode("utf-32-le"), np.uint32)
    spelled = places[np.minimum(letters, 511)]
    bounds = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
    other = np.append(0, np.cumsum(spelled == 256))[bounds]
    return (
        np.append(spelled.astype(np.uint8), np.zeros(64, np.uint8)),
        bounds,
        (np.diff(other) == 0) & (np.diff(bounds) > 0),
    )


def _family(pre: dict[str, Any]) -> int | None:
    def byte_level(one: dict[str, Any], regex: bool) -> bool:
        return (
            one.get("type") == "ByteLevel" and not one.get("add_prefix_space") and one.get("use_regex", True) == regex
        )

    if byte_level(pre, True):
        return GPT2
    steps: list[dict[str, Any]] = pre.get("pretokenizers", []) if pre.get("type") == "Sequence" else []
    if len(steps) != 2:
        return None
    first, second = steps
    if first.get("type") == "Digits" and first.get("individual_digits") and byte_level(second, True):
        return DIGITS
    if first.get("type") != "Split" or first.get("behavior") != "Isolated" or first.get("invert"):
        return None
    pattern = (first.get("pattern") or {}).get("Regex")
    return PATTERNS.get(str(pattern)) if byte_level(second, False) else None
