"""The index finds exactly what comparing every pair by the textbook would."""

from __future__ import annotations

from hypothesis import given as for_all
from hypothesis import strategies as st

from engine.text.words import words
from generators.instructions.novelty import EarlierTexts, common_subsequence, rouge_l
from generators.instructions.novelty_rule import Novelty

TEXT = st.lists(st.sampled_from(["the", "a", "cat", "sat", "on", "mat", "dog"]), max_size=12).map(" ".join)


def textbook(a: list[str], b: list[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@for_all(TEXT, TEXT)
def test_the_longest_common_subsequence(a: str, b: str) -> None:
    assert common_subsequence(words(a), words(b)) == textbook(words(a), words(b))


def test_rouge_l_of_a_worked_example() -> None:
    # Lin (2004), section 3.1: S1 against S2 shares 3 of 4 words in order, S3 shares 2.
    s1, s2, s3 = (words(s) for s in ("police killed the gunman", "police kill the gunman", "the gunman kill police"))
    assert rouge_l(s1, s2) == 0.75 and rouge_l(s1, s3) == 0.5


@for_all(st.lists(TEXT, min_size=1, max_size=12), TEXT, st.sampled_from([0.5, 0.7, 0.9]))
def test_what_is_known_is_found_and_nothing_else(known: list[str], text: str, limit: float) -> None:
    new = words(text)
    index = EarlierTexts(Novelty.model_validate({"rouge_l": limit}))
    for number, other in enumerate(known):
        index.add(other, str(number))
    alike = [
        o for o in known if words(o) == new or 2 * textbook(new, words(o)) >= limit * max(1, len(new) + len(words(o)))
    ]
    assert (index.like(text) is not None) == bool(alike)


def test_texts_are_new_as_people_read_them() -> None:
    index = EarlierTexts(Novelty())
    for text in ("请说明为什么夏天的午后玻璃杯外面会出现水珠", "Décrivez la forêt près du théâtre", "🙂"):
        index.add(text, text)
    copies = (
        "请说明为什么夏天的午后，\n玻璃杯外面会出现水珠？",
        "De\u0301CRIVEZ la fore\u0302t près du thé\u00adâtre",
        "🙂\ufe0f",
    )
    assert [(found or ("",))[0] for found in map(index.like, copies)] == ["exact"] * 3
    near = index.like("请说明为什么冬天的午后玻璃杯外面会出现水珠")
    assert near is not None and near[0] == "rouge_l" and near[2] == 20 / 21
    assert index.like("请写一首关于大海的诗") is None and index.like("🙃") is None


@for_all(st.lists(TEXT, min_size=1, max_size=12), TEXT)
def test_ngrams_in_common(known: list[str], text: str) -> None:
    def grams(said: str) -> set[str]:
        parts = words(said)
        return {" ".join(parts[i : i + 2]) for i in range(max(len(parts) - 1, min(1, len(parts))))}

    index = EarlierTexts(Novelty.model_validate({"rouge_l": None, "jaccard": 0.5, "n": 2}))
    for number, other in enumerate(known):
        index.add(other, str(number))
    alike = [
        o
        for o in known
        if words(o) == words(text) or len(grams(o) & grams(text)) >= 0.5 * max(1, len(grams(o) | grams(text)))
    ]
    assert (index.like(text) is not None) == bool(alike)
