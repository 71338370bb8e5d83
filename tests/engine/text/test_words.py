"""Words are those of UAX #29, against the boundaries that `regex` finds, and the tailorings that are stated."""

from __future__ import annotations

import re

import pytest
import regex
from hypothesis import given as for_all
from hypothesis import strategies as st

from engine.text.normal_form import normal_form
from engine.text.words import tokens, words

# Letters and marks of scripts with spaces and without, digits, symbols and what separates; no katakana, no punctuation inside words.
UNTAILORED = st.sampled_from(
    [*"aZ9_éßдשאم٣한 \n!?-/€🙂“”、。好いかงเ", "x\u0323\u0301", "か\u3099", "हि", "กำ", "น้ำ", "ខ្ម", "မြ"]
)


@for_all(st.lists(UNTAILORED).map("".join))
def test_words_are_those_between_the_default_boundaries(text: str) -> None:
    segments = regex.split(r"\b", normal_form(text), flags=regex.WORD | regex.V1)
    assert words(text) == [segment for segment in segments if regex.match(r"[\p{L}\p{N}_]", segment)]


@for_all(st.text(st.characters(max_codepoint=127)))
def test_of_ascii_words_are_letters_digits_and_underscores(text: str) -> None:
    expected = re.findall(r"[0-9a-z_]+", text.lower())
    assert words(text) == expected == words(f"é {text} é")[1:-1]
    assert tokens(text) == text.split() == tokens(f"é {text} é")[1:-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don’t pay 3.14 €!", ["don", "t", "pay", "3", "14"]),
        ("我在读GPT-4の論文。", ["我", "在", "读", "gpt", "4", "の", "論", "文"]),
        ("データ ﾃﾞｰﾀ", [*"データ", *"データ"]),
        ("ﾃ\nﾞｰ ก\u200b\nิ x\n\u0301", [*"デー", "กิ", "x"]),
        ("대한민국의 수도는?", ["대한민국의", "수도는"]),
        ("กำลังไป", ["ก\u0e4d", "า", "ลั", "ง", "ไ", "ป"]),
        ("ភាសាខ្មែរ", ["ភា", "សា", "ខ្", "មែ", "រ"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("👨‍👩‍👧 🙂", []),
        ("´a \u0301b", ["a", "b"]),
    ],
)
def test_words_of_scripts(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_tokens_keep_their_punctuation_and_set_units_apart() -> None:
    assert tokens("Well-known: 3.14 (好的, ok). กิน\u3000x") == [
        "Well-known:", "3.14", "(", "好", "的", ",", "ok).", "กิ", "น", "x",
    ]  # fmt: skip
