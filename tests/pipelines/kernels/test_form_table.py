"""The table agrees with the definitions in `engine.text` for every character."""

from __future__ import annotations

import unicodedata

from engine.text.normal_form import folded
from engine.text.words import words
from pipelines.kernels.form_table import CLASS, CLASS_BITS, GROWTH, KIND, KIND_BITS, LETTER, MARK, UNIT, form_table

# Planes 0 and 1, compatibility ideographs and tags; the others hold ideographs, private and unassigned characters only.
POINTS = [*range(0xD800), *range(0xE000, 0x20000), *range(0x2F800, 0x2FA20), *range(0xE0000, 0xE1000)]
CHARACTERS = [chr(point) for point in POINTS]


def test_every_character_is_replaced_by_its_decomposed_folding() -> None:
    entries, pool = form_table()
    points, wide = pool.tolist(), 0.0
    for character, entry in zip(CHARACTERS, entries[POINTS].tolist(), strict=True):
        start = entry >> (KIND_BITS + CLASS_BITS)
        folding = [chr(p) for p in points[start + 1 : start + 1 + points[start]]] if start else [character]
        assert "".join(folding) == unicodedata.normalize("NFD", folded(character)), hex(ord(character))
        assert (entry >> KIND_BITS) & CLASS == unicodedata.combining(character)
        if start:
            spaces = 2 * sum(int(entries[ord(part)]) & KIND == UNIT for part in folding)
            wide = max(wide, (len("".join(folding).encode()) + spaces) / len(character.encode()))
    assert 10 < wide <= GROWTH


def test_a_character_is_a_word_just_if_its_kind_stands_in_words() -> None:
    entries, _ = form_table()
    for character in CHARACTERS[::8]:
        form = unicodedata.normalize("NFC", folded(character))
        if len(form) == 1:
            kind = int(entries[ord(form)]) & KIND
            assert (words(form) == [form]) == (kind in (LETTER, UNIT)) and (words(f"a{form}") == [f"a{form}"]) == (
                kind in (LETTER, MARK) and unicodedata.is_normalized("NFC", f"a{form}")
            ), hex(ord(character))
