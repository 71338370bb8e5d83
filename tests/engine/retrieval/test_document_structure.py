"""Passages follow a document's structure, and hold all of it."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.retrieval.document_structure import cut
from engine.text.words import token_spans

PAGE = """# Leave

Everyone has thirty days.

## Sick days

Tell Ms Oduya before nine.

- At home: call.
- Abroad: write.

## Parental leave
```python
# not a heading
## neither
```
Hotels
======
Up to 140 crowns.
"""


def cuts(text: str, size: int = 100, code: bool = False) -> list[tuple[str, str]]:
    return [(one.heading, text[one.start : one.end]) for one in cut(text, size, code)]


def test_a_section_is_a_passage_under_its_headings() -> None:
    assert cuts(PAGE) == [
        ("Leave", "# Leave\n\nEveryone has thirty days."),
        ("Leave › Sick days", "## Sick days\n\nTell Ms Oduya before nine.\n\n- At home: call.\n- Abroad: write."),
        ("Leave › Parental leave", "## Parental leave\n```python\n# not a heading\n## neither\n```"),
        ("Hotels", "Hotels\n======\nUp to 140 crowns."),
    ]


def test_what_is_longer_is_cut_between_items_lines_sentences_and_words() -> None:
    assert [text for _, text in cuts("- one two\n- three four\n- five six\n", 6)] == [
        "- one two\n- three four",
        "- five six",
    ]
    assert [text for _, text in cuts("One two three. Four five! Six seven?", 4)] == [
        "One two three.",
        "Four five! Six seven?",
    ]
    assert [text for _, text in cuts("a b c d e", 2)] == ["a b", "c d", "e"]
    assert [text for _, text in cuts("明日は晴れ。今日は雨。", 6)] == ["明日は晴れ。", "今日は雨。"]


def test_a_program_has_no_headings() -> None:
    text = "# a comment\nx = 1\n\ndef f():\n    return 2\n"
    assert cuts(text, 6, code=True) == [("", "# a comment\nx = 1"), ("", "def f():\n    return 2")]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["# A", "## B c", "word", "two words.", "", "- item", "```", "===", "---", "1. first", "    x", "字字字"]
        ),
        max_size=30,
    ),
    st.integers(1, 9),
)
def test_all_of_a_document_is_in_one_passage_each_and_none_is_too_long(lines: list[str], size: int) -> None:
    text = "\n".join(lines)
    found = cut(text, size)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    held = {at for one in found for at in range(one.start, one.end)}
    assert all(at in held for at, letter in enumerate(text) if not letter.isspace())
    assert all(len(token_spans(text[one.start : one.end])) <= size for one in found)
