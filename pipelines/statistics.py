"""What the published heuristics measure of a text.

A word is what `str.split()` gives; a line is what stands between newlines, stripped, if anything is left. Lengths are
in characters (code points), shares in [0, 1]; a text without words or lines has 0 in every column.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

# Rae et al. 2021 (Gopher), A.1.1: "the", "be", "to", "of", "and", "that", "have", "with".
STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
BULLETS = ("•", "‣", "▶", "◀", "◦", "■", "□", "▪", "▫", "–", "-", "*")
STATISTICS = pa.schema([
    ("words", pa.int64()),            # number of words
    ("characters", pa.int64()),       # number of characters, white space included
    ("lines", pa.int64()),            # number of lines that are not blank
    ("mean_word_length", pa.float64()),
    ("hash_ratio", pa.float64()),     # "#" per word
    ("ellipsis_ratio", pa.float64()), # "..." and "…" per word
    ("bullet_lines", pa.float64()),   # share of lines that start with a bullet
    ("ellipsis_lines", pa.float64()), # share of lines that end with an ellipsis
    ("alpha_words", pa.float64()),    # share of words with at least one letter
    ("stop_words", pa.int64()),       # how many different of the eight English stop words occur
])  # fmt: skip


def measure(texts: Iterable[str]) -> pa.Table:
    """One row of `STATISTICS` for each text."""
    return pa.Table.from_pylist([_measure(text) for text in texts], STATISTICS)


def _measure(text: str) -> dict[str, float]:
    words = text.split()
    lines = [line for part in text.split("\n") if (line := part.strip())]
    n, m = max(len(words), 1), max(len(lines), 1)
    return {
        "words": len(words),
        "characters": len(text),
        "lines": len(lines),
        "mean_word_length": sum(map(len, words)) / n,
        "hash_ratio": text.count("#") / n,
        "ellipsis_ratio": (text.count("...") + text.count("…")) / n,
        "bullet_lines": sum(line.startswith(BULLETS) for line in lines) / m,
        "ellipsis_lines": sum(line.endswith(("...", "…")) for line in lines) / m,
        "alpha_words": sum(any(map(str.isalpha, word)) for word in words) / n,
        "stop_words": len(STOP_WORDS.intersection(words)),
    }
