"""The kernel against the same statistics in plain Python, row by row."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, settings
from hypothesis import given as for_all
from hypothesis import strategies as st

from benchmarks.parts.plain_statistics import plain
from pipelines.filter.statistics import COLUMNS, measure


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
        "カ\u3099。",
        "ก\u0e48ิx",
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
