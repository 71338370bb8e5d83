"""The kernel against the same statistics in plain Python, row by row."""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, settings
from hypothesis import given as for_all
from hypothesis import strategies as st

from pipelines.filter.statistics import BULLETS, CLOSERS, COLUMNS, STOP_WORDS, TERMINALS, measure


def top_ngram(words: list[str], n: int) -> int:
    counts = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
    times, length = max(((count, len(gram)) for gram, count in counts.items()), default=(0, 0))
    return times * length if times > 1 else 0


def duplicate_ngrams(words: list[str], n: int) -> int:
    """As datatrove's `find_all_duplicate`."""
    seen: set[tuple[str, ...]] = set()
    repeated = at = 0
    while at < len(words) - n + 1:
        gram = tuple(words[at : at + n])
        if gram in seen:
            repeated += sum(map(len, gram))
            at += n
        else:
            seen.add(gram)
            at += 1
    return repeated


def duplicates(items: list[str]) -> tuple[int, int]:
    again = [item for i, item in enumerate(items) if item in items[:i]] if len(items) < 200 else None
    if again is None:
        seen: set[str] = set()
        again = [item for item in items if item in seen or seen.add(item)]  # type: ignore[func-returns-value]
    return len(again), sum(map(len, again))


def plain(text: str) -> dict[str, float]:
    words = text.split()
    rows = [line.strip() for line in text.split("\n")]
    lines = [line for line in rows if line]
    paragraphs = [p for p in re.split(r"\n{2,}", "\n".join(rows).strip("\n")) if p]
    n, m, size = max(len(words), 1), max(len(lines), 1), max(len(text), 1)
    again, again_characters = duplicates(lines)
    paragraphs_again, paragraph_characters = duplicates(paragraphs)
    return {
        "words": len(words),
        "characters": len(text),
        "lines": len(lines),
        "paragraphs": len(paragraphs),
        "mean_word_length": sum(map(len, words)) / n,
        "hash_ratio": text.count("#") / n,
        "ellipsis_ratio": (text.count("...") + text.count("…")) / n,
        "bullet_lines": sum(line.startswith(tuple(BULLETS)) for line in lines) / m,
        "ellipsis_lines": sum(line.endswith(("...", "…")) for line in lines) / m,
        "alpha_words": sum(any(map(str.isalpha, word)) for word in words) / n,
        "stop_words": len(set(STOP_WORDS).intersection(words)),
        "terminal_lines": sum(line.endswith(tuple(TERMINALS)) for line in lines) / m,
        "short_lines": sum(len(line) < 30 for line in lines) / m,
        "sentences": sum(word.rstrip(CLOSERS).endswith((".", "!", "?")) for word in words),
        "duplicate_lines": again / m,
        "duplicate_line_characters": again_characters / size,
        "duplicate_paragraphs": paragraphs_again / max(len(paragraphs), 1),
        "duplicate_paragraph_characters": paragraph_characters / size,
        **{f"top_{k}gram": top_ngram(words, k) / size for k in (2, 3, 4)},
        **{f"duplicate_{k}grams": duplicate_ngrams(words, k) / size for k in range(5, 11)},
    }


def compare(texts: list[str]) -> None:
    measured = measure(pa.chunked_array([pa.array(["x", *texts]).slice(1)])).to_pylist()
    for text, row in zip(texts, measured, strict=True):
        assert row == plain(text), text[:200]


WORDS = st.sampled_from(
    [
        "the",
        "be",
        "and",
        "a",
        "b",
        "the.",
        "(the!)",
        'so?"',
        "...",
        "..",
        "….",
        "#",
        "•",
        "-x",
        "42",
        "é",
        "好",
        "🙂",
        "\u2029",
    ]
)
GAPS = st.sampled_from([" ", " ", " ", "\n", "\n\n", "\n \n", "\t", "\u3000", "\u00a0", "\r\n", "\x1c", "\u200b"])


@settings(deadline=None, max_examples=300)
@for_all(st.lists(st.lists(st.tuples(WORDS, GAPS), max_size=60), min_size=1, max_size=3))
@example([[("the", " "), ("b", " ")] * 30])
def test_words_and_gaps_from_few(pieces: list[list[tuple[str, str]]]) -> None:
    compare(["".join(word + gap for word, gap in text) for text in pieces])


@settings(deadline=None)
@for_all(st.lists(st.text(max_size=200), min_size=1, max_size=3))
@example(["", "\n", " ", "......", "....…", "x\n\n\nx\n\nx", "\x85a\u1680b"])
def test_any_text(texts: list[str]) -> None:
    compare(texts)


def test_real_text() -> None:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]
    compare([file.read_text(encoding="utf-8") for file in files] + [(files[0].read_text() + "\n\n") * 3])


def test_every_code_point() -> None:
    points = [chr(p) for p in range(0x110000) if not 0xD800 <= p < 0xE000]
    compare(["a".join(points[i : i + 5000]) for i in range(0, len(points), 5000)])


@pytest.mark.parametrize("name", COLUMNS)
def test_every_column_says_something(name: str) -> None:
    text = "- The cat and the... dog of it is here. And the cat and the... dog of it is here. And #1 so\n"
    text = text + text + "\nof…\n\nof…\n\n" + "to be with you now and then as ever I was " * 3 + "\nso."
    assert measure(pa.array([text])).column(name)[0].as_py() > 0
