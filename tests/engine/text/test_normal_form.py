"""The normal form is Unicode's: against the tables of `idna` (UTS #46 maps by NFKC_Casefold), and by the laws that it has."""

from __future__ import annotations

import unicodedata

from hypothesis import example
from hypothesis import given as for_all
from hypothesis import strategies as st
from idna.uts46data import uts46_replacements, uts46_starts, uts46_statuses

from engine.text.normal_form import folded, normal_form


def test_characters_are_folded_as_uts46_maps_them() -> None:
    """UTS #46 maps by NFKC_Casefold what it maps at all, but for ideographic full stops and the capital sharp s."""
    compared = 0
    for number, start in enumerate(uts46_starts):
        end = uts46_starts[number + 1] if number + 1 < len(uts46_starts) else start + 1
        for point in range(start, min(end, start + 5000)):
            character, status = chr(point), chr(uts46_statuses[number])
            if status != "M" or unicodedata.category(character) == "Cn" or character in "。｡ẞ":
                continue
            compared += 1
            assert folded(character) == uts46_replacements[number], hex(point)
    assert compared > 5000


SPELLINGS = {
    "nfd": ("ForÊt évoquée", unicodedata.normalize("NFD", "forêt Évoquée")),
    "full width": ("Baker 14", "Ｂａｋｅｒ　１４"),
    "half width": ("パン屋のガス", "ﾊﾟﾝ屋のｶﾞｽ"),
    "ligatures": ("fine office", "ﬁne oﬃce"),
    "ignorable": ("the baker", "\ufeffth\u00ade\u200b ba\u200dk\u2060er\ufe0f\u200e"),
    "full case folding": ("STRASSE İ", "straße i\u0307"),
    "compatibility": ("x2 株式会社 ⅷ", "x² ㍿ VIII"),
    "presentation forms": ("السلام", "\ufe8d\ufedf\ufeb4\ufefc\ufee1"),
    "jamo": ("한국어", unicodedata.normalize("NFD", "한국어")),
}  # fmt: skip


def test_spellings_of_the_same_text_have_one_form() -> None:
    for one, other in SPELLINGS.values():
        assert one != other and normal_form(one) == normal_form(other)


@for_all(st.text())
@example("\u0345\u0301α ｶﾞ \u1e9e\u03d2\u0308 ﷺ")
def test_the_form_is_stable_and_of_canonical_equivalents_the_same(text: str) -> None:
    form = normal_form(text)
    assert normal_form(form) == form and unicodedata.is_normalized("NFKC", form)
    assert normal_form(text + "x").endswith("x")
    if "\u0345" not in unicodedata.normalize("NFD", text):  # which folds to a letter wherever it stands among marks
        assert (
            normal_form(unicodedata.normalize("NFD", text)) == form == normal_form(unicodedata.normalize("NFKD", text))
        )


@for_all(st.text(st.characters(max_codepoint=127)))
def test_of_ascii_it_is_the_lower_case(text: str) -> None:
    assert normal_form(text) == text.lower() == normal_form(f"{text}é")[:-1]
