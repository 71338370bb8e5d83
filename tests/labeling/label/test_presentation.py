from __future__ import annotations

from typing import Any

from labeling.label.presentation import attention_checks, presentations, text_of


def candidates(texts: dict[str, list[str]], reference: dict[str, str] | None = None) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{prompt}-{a}", "prompt_id": prompt, "prompt": [{"role": "user", "content": prompt}],
            "completion": [{"role": "assistant", "content": text}], "reference": (reference or {}).get(prompt),
        }
        for prompt, answers in texts.items()
        for a, text in enumerate(answers)
    ]  # fmt: skip


def test_what_is_shown_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    rows = candidates({f"q{i}": [f"{i}{a}" for a in range(6)] for i in range(20)})
    one, _ = presentations(rows, 4, 7, {})
    assert one == presentations(rows[::-1], 4, 7, {})[0]
    assert one != presentations(rows, 4, 8, {})[0]
    assert {len(s.candidates) for s in one} == {4}


def test_an_order_of_ones_own_keeps_what_belongs_together() -> None:
    rows = candidates({"q": ["a", "b", "c", "d"]})
    (shown,), _ = presentations(rows, 4, 0, {row["id"]: float(ord(text_of(row))) for row in rows})
    own = [shown.for_annotator(name, 0) for name in ("ann", "bob", "cat", "dan")]
    assert len({tuple(s.texts) for s in own}) > 1 and len({s.key for s in own}) == 4
    assert all(s.worth == [float(ord(text)) for text in s.texts] for s in own)
    assert own[0] == shown.for_annotator("ann", 0)


def test_planted_answers_belong_to_another_question_with_another_reference() -> None:
    """Two phrasings of each question share their answers: a right answer must never be planted as a wrong one."""
    texts = {
        f"{ask} {i}?": [f"right {i}", f"wrong {i}", f"{ask} wrong {i}"] for i in range(10) for ask in ("What", "Which")
    }
    rows = candidates(texts, {prompt: f"right {prompt.split()[1][:-1]}" for prompt in texts})
    shown, _ = presentations(rows, 3, 3, {row["id"]: 1.0 for row in rows})
    checks = attention_checks(shown, 0.5, 3)
    assert len(checks) == 10 and len({check.key for check in checks}) == 10
    by_key = {s.prompt_id: s for s in shown}
    for check in checks:
        (planted,) = (row for row in check.candidates if row["id"] == check.planted)
        assert planted["reference"] != by_key[check.prompt_id].candidates[0]["reference"]
        assert len(set(check.texts) & set(by_key[check.prompt_id].texts)) == 2
        assert check.worth[check.candidates.index(planted)] == -2.0
    assert len({check.candidates.index(next(r for r in check.candidates if r["id"] == check.planted)) for check in checks}) == 3  # fmt: skip
    assert attention_checks(shown, 0.5, 3) == checks


def test_no_check_where_nothing_can_be_planted() -> None:
    shown, _ = presentations(candidates({f"q{i}": ["yes", "no"] for i in range(5)}), 2, 0, {})
    assert attention_checks(shown, 0.5, 0) == []
