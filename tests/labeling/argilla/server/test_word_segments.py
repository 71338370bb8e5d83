"""Every word of a text finds that text, over all letters: as UAX #29 has words, however they are written."""

from __future__ import annotations

import sys
import unicodedata

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling.argilla.server.embedded.query_string import MOST_WORDS, QueryTooLarge, matches, parse
from labeling.argilla.server.embedded.word_segments import folded, words

SEGMENTS = regex.compile(r"(?V1w)\b")  # UAX #29 as another library has it
LETTERS = st.characters(categories=("L", "M", "N"))
APART = st.sampled_from([" ", ", ", "\n", " - ", "...", '"', "(", "👍", "’", "'", ".", "_", "\u200d", "\u00ad"])


def found(query: str, *texts: str) -> bool:
    return matches(parse(query), texts)


def words_of(text: str) -> list[str]:
    """What holds a letter or digit; composed, and without what is not seen and marks upon punctuation, to which UAX #29 pays no heed."""
    unseen = r"(?V1)[\p{Default_Ignorable_Code_Point}--\u200b]|(?<=\p{P})\p{M}+"
    seen = regex.sub(unseen, "", unicodedata.normalize("NFC", text))
    segments = SEGMENTS.split(seen)
    return [segment for segment in segments if regex.search(r"[\p{L}\p{N}]", segment)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.text(LETTERS, min_size=1, max_size=8), APART), max_size=8).map("".join))
def test_every_word_of_a_text_finds_it(text: str) -> None:
    for word in words_of(text):
        assert found(word, text), (word, text)
        for written in (unicodedata.normalize("NFC", word), unicodedata.normalize("NFD", word), word.casefold()):
            assert found(written, text), (written, text)


def test_every_letter_finds_its_word() -> None:
    """Each letter of Unicode on its own and within a word, in lower and upper case where it has them."""
    for number in range(0x80, sys.maxunicode):
        letter = chr(number)
        if unicodedata.category(letter) in ("Ll", "Lu", "Lt", "Lm") or (
            number < 0x3100 and unicodedata.category(letter)[0] in "LM"
        ):
            for word in words_of(f"x {letter} a{letter}b {letter.lower()} z"):
                assert found(word, f"x {letter} a{letter}b {letter.lower()} z"), (hex(number), word)


@settings(max_examples=300, deadline=None)
@given(st.text("ab9.:',; -_xAB", max_size=12))
def test_the_fast_way_for_ascii_is_the_same(text: str) -> None:
    assert words(text) == [folded(segment) for segment in SEGMENTS.split(text) if folded(segment)]


@pytest.mark.parametrize(
    ("query", "text", "expected"),
    [
        ("Straße", "Die Straße", True),
        ("STRASSE", "Die Straße", True),
        ("groß", "ein großer Mann", False),  # whole words
        ("Fußball", "FUSSBALL", True),
        ("istanbul", "İstanbul", True),
        ("office", "the oﬃce", True),
        ("पानी", "पानी है", True),
        ("पानी", "पिन", False),
        ("पिन", "पानी", False),
        ("น้ำ", "ดื่มน้ำ", True),
        ("นำ", "ดื่มน้ำ", False),
        ("தமிழ்", "தமிழ் மொழி", True),
        ("தமழ", "தமிழ் மொழி", False),
        ("বাংলা", "বাংলা ভাষা", True),
        ("ગુજરાતી", "ગુજરાતી ભાષા", True),
        ("שָׁלוֹם", "שָׁלוֹם עולם", True),
        ("שלום", "שָׁלוֹם עולם", False),
        ('צה"ל', 'של צה"ל היום', True),
        ("東京", "東京タワー", True),
        ("AT&T", "at AT&T today", True),
        ("Q&A", "A Q&A, briefly", True),
        ("x<y", "if x<y then", True),
        ("don't", "I don’t", True),
        ("3.14", "pi is 3.14.", True),
        ("14", "pi is 3.14.", False),
        ("co\u00adoperate", "cooperate", True),
        ("😀", "well 😀!", True),
        ("😀", "well 😃!", False),
        ("😀", "well", False),
        ("❤", "I ❤️ it", True),
        ("🇩🇪", "🇫🇷🇩🇪", True),
        ("👩‍💻", "👩‍💻 at work", True),
        ("-😀", "well", True),
        ("ไทย", "ภาษา\u200bไทย", True),
    ],
)
def test_words_of_many_scripts(query: str, text: str, expected: bool) -> None:
    assert found(query, text) is expected


@pytest.mark.parametrize("query", [" ".join(f"word{i}" for i in range(MOST_WORDS + 1)), "(" * 3000 + "word"])
def test_a_query_is_bounded_in_words(query: str) -> None:
    with pytest.raises(QueryTooLarge, match="at most"):
        parse(query)
    assert not found("(" * 3000, "word")


def test_the_largest_query() -> None:
    assert found(" ".join(f"word{i}" for i in range(MOST_WORDS)), " ".join(f"word{i}" for i in range(MOST_WORDS)))
