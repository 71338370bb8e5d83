from __future__ import annotations

import random
from typing import Any

import pytest

from engine.errors import StageFailed, UserError
from engine.store.schema import messages_digest, row_id
from labeling.ask.stage import Ask
from labeling.preferences.stage import Preferences
from tests.labeling.ranking_rows import kept, ranking


def reasons(artifact: Any) -> dict[tuple[str, str], str]:
    rows = artifact.rejected().to_pylist() if artifact.rejected() is not None else []
    return {(r["chosen_id"] or "", r["rejected_id"] or ""): r["reason"] for r in rows}


def test_every_field_of_a_pair_is_filled(given: Any, build: Any) -> None:
    rows = [
        ranking("p", "ann", {"A": 1, "B": 2}),
        ranking("p", "bob", {"A": 1, "B": 2}),
        ranking("p", "cat", {"A": 2, "B": 1}),
    ]
    artifact = build(Preferences, {"rankings": given("Ranking", rows)}, validation=0)
    (row,) = artifact.to_table().to_pylist()
    assert row["chosen"] == [{"role": "assistant", "content": "A"}]
    assert row["rejected"] == [{"role": "assistant", "content": "B"}]
    assert row["prompt"] == [{"role": "user", "content": "What about p?"}]
    assert (row["chosen_id"], row["rejected_id"], row["prompt_id"]) == ("p-A", "p-B", "p")
    assert row["agreement"] == pytest.approx(2 / 3) and row["annotators"] == 3 and row["split"] == "train"
    assert row["margin"] > 0 and 0.5 < row["confidence"] < 1
    assert set(row["parents"]) == {r["id"] for r in rows} | {"p-A", "p-B"}


def test_pairs_that_say_nothing_are_rejected_with_their_reason(given: Any, build: Any) -> None:
    rows = [
        ranking("good", "ann", {"A": 1, "B": 2}),
        ranking("tied", "ann", {"A": 1, "B": 1}),
        ranking("split", "ann", {"A": 1, "B": 2}),
        ranking("split", "bob", {"A": 2, "B": 1}),
        ranking("unseen", "ann", {"A": 1, "B": None, "C": None}),
        ranking("same", "ann", {"A": 1, "B": 2}, completions=["yes", "yes"]),
        ranking("nothing", "ann", {"A": None, "B": None}),
    ]
    artifact = build(Preferences, {"rankings": given("Ranking", rows)}, validation=0, position_bias=False)
    assert set(kept(artifact)) == {("good-A", "good-B"), ("unseen-A", "unseen-B"), ("unseen-A", "unseen-C")}
    found = artifact.manifest["rejected"]
    assert found == {"conflict": 1, "empty": 1, "not_compared": 1, "one_answer": 1, "tie": 1}


def test_identical_texts_are_one_answer(given: Any, build: Any) -> None:
    row = ranking("p", "ann", {"a1": 1, "a2": 3, "b": 2}, completions=["yes", "yes", "no"])
    other = ranking("p", "bob", {"a1": 1, "a2": 1, "b": 2}, completions=["yes", "yes", "no"])
    artifact = build(Preferences, {"rankings": given("Ranking", [row, other])}, validation=0)
    assert set(kept(artifact)) == {("p-a1", "p-b")}
    # ann: the mean of ranks 1 and 3 ties with 2; bob is for it
    assert kept(artifact)["p-a1", "p-b"]["agreement"] == 0.5
    assert reasons(artifact) == {("p-a1", "p-a2"): "identical"}


def test_thresholds(given: Any, build: Any) -> None:
    votes = [("ann", 1, 2), ("bob", 1, 2), ("cat", 1, 2), ("dan", 2, 1)]
    rankings = given(
        "Ranking", [ranking("p", n, {"A": a, "B": b}) for n, a, b in votes] + [ranking("q", "ann", {"A": 1, "B": 2})]
    )
    base = dict(validation=0, weigh=False, position_bias=False)
    assert set(kept(build(Preferences, {"rankings": rankings}, **base))) == {("p-A", "p-B"), ("q-A", "q-B")}
    assert set(kept(build(Preferences, {"rankings": rankings}, min_agreement=0.8, **base))) == {("q-A", "q-B")}
    few = build(Preferences, {"rankings": rankings}, min_annotators=2, **base)
    assert set(kept(few)) == {("p-A", "p-B")} and reasons(few) == {("q-A", "q-B"): "few_annotators"}
    with pytest.raises(StageFailed, match=r"low_margin \(2\)"):
        build(Preferences, {"rankings": rankings}, min_margin=50, **base)
    with pytest.raises(StageFailed, match=r"low_confidence"):
        build(Preferences, {"rankings": rankings}, min_confidence=0.999, **base)


@pytest.mark.parametrize(("pairs", "count"), [("all", 6), ("best_worst", 1), ("adjacent", 3)])
def test_which_pairs(given: Any, build: Any, pairs: str, count: int) -> None:
    rankings = given("Ranking", [ranking("p", "ann", {"A": 4, "B": 3, "C": 2, "D": 1})])
    found = set(kept(build(Preferences, {"rankings": rankings}, pairs=pairs, validation=0)))
    assert len(found) == count
    order = "DCBA"
    assert all(order.index(a[-1]) < order.index(b[-1]) for a, b in found)
    if pairs == "best_worst":
        assert found == {("p-D", "p-A")}


def test_no_prompt_is_on_both_sides_even_under_two_ids(given: Any, build: Any) -> None:
    rows = []
    for i in range(40):
        for copy in ("", "-again"):
            rows.append(
                ranking(f"p{i}{copy}", "ann", {"A": 1, "B": 2, "C": 3}, prompt=[{"role": "user", "content": f"q{i}"}])
            )
    artifact = build(Preferences, {"rankings": given("Ranking", rows)}, validation=0.25)
    sides: dict[str, set[str]] = {}
    for row in artifact.to_table().to_pylist():
        sides.setdefault(row["prompt"][0]["content"], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    assert sum(side == {"validation"} for side in sides.values()) == 10
    assert artifact.manifest["summary"]["pairs"] == {"train": 180, "validation": 60}


def test_order_and_cut_of_the_input_do_not_matter(given: Any, build: Any) -> None:
    rng = random.Random(0)
    rows = [
        ranking(f"p{i}", f"ann{a}", {text: rng.randint(1, 3) for text in "ABCD"}, shown=rng.sample(range(4), 4))
        for i in range(30)
        for a in range(3)
    ]
    one = build(Preferences, {"rankings": given("Ranking", rows)})
    rng.shuffle(rows)
    two = build(Preferences, {"rankings": [given("Ranking", rows[:17]), given("Ranking", rows[17:])]})
    assert one.id != two.id and one.to_table().equals(two.to_table())
    assert one.rejected().equals(two.rejected())
    assert one.manifest["summary"] == two.manifest["summary"]


def test_kinds_are_never_mixed_silently(given: Any, build: Any) -> None:
    rows = [ranking(f"p{i}", "ann", {"A": 1, "B": 2}) for i in range(4)]
    rows += [ranking(f"p{i}", "gpt", {"A": 2, "B": 1} if i else {"A": 1, "B": 2}, kind="judge") for i in range(4)]
    rankings = given("Ranking", rows)
    with pytest.raises(UserError, match=r"several kinds of annotator \(judge, person\)"):
        build(Preferences, {"rankings": rankings})
    people = build(Preferences, {"rankings": rankings}, kinds=["person"], validation=0)
    assert len(people.to_table()) == 4 and people.manifest["rejected"] == {"kind": 4}
    assert set(people.to_table().column("kinds").to_pylist()) == {"person"}
    judge = people.manifest["summary"]["kinds"]["judge"]
    assert judge["share"] == 0.5 and judge["agrees_with_people"]["value"] == 0.25
    both = build(Preferences, {"rankings": rankings}, kinds=["person", "judge"], validation=0, position_bias=False)
    assert kept(both)["p0-A", "p0-B"]["kinds"] == "judge+person"


def test_gold_that_names_no_prompt_is_found_by_what_the_prompt_says(given: Any, build: Any) -> None:
    rows = [ranking(f"p{i}", name, order) for i in range(3) for name, order in (
        ("ann", {"A": 1, "B": 2}), ("bad", {"A": 2, "B": 1}),
    )]  # fmt: skip
    rows = [{**row, "prompt_id": row_id("Prompt", messages_digest(row["prompt"]))} for row in rows]
    gold = [
        {
            "id": f"g{i}", "parents": [], "prompt": [{"role": "user", "content": f"What about p{i}?"}],
            "chosen": [{"role": "assistant", "content": "A"}], "rejected": [{"role": "assistant", "content": "B"}],
        }
        for i in range(3)
    ]  # fmt: skip
    inputs = {"rankings": given("Ranking", rows), "gold": given("Preference", gold)}
    made = build(Preferences, inputs, min_gold=0.7, validation=0)
    assert made.manifest["rejected"] == {"failed_gold": 3}


def test_gold_questions_set_annotators_aside(given: Any, build: Any) -> None:
    rows = [ranking(f"p{i}", "ann", {"A": 1, "B": 2}) for i in range(6)]
    rows += [ranking(f"p{i}", "bad", {"A": 2, "B": 1}) for i in range(6)]
    gold = [
        {
            "id": f"g{i}", "parents": [], "prompt_id": f"p{i}", "chosen_id": f"p{i}-A", "rejected_id": f"p{i}-B",
            "chosen": [{"role": "assistant", "content": "A"}], "rejected": [{"role": "assistant", "content": "B"}],
        }
        for i in range(3)
    ]  # fmt: skip
    inputs = {"rankings": given("Ranking", rows), "gold": given("Preference", gold)}
    artifact = build(Preferences, inputs, min_gold=0.7, validation=0)
    assert len(artifact.to_table()) == 6 and artifact.manifest["rejected"] == {"failed_gold": 6}
    annotators = artifact.manifest["summary"]["annotators"]
    assert annotators["ann"]["gold"]["value"] == 1 and annotators["bad"]["gold"]["value"] == 0
    # Even when nobody is set aside, the key tells who is right where the two disagree.
    lenient = build(Preferences, inputs, validation=0, min_agreement=0, position_bias=False)
    assert all(c.endswith("-A") for c in lenient.to_table().column("chosen_id").to_pylist())
    found = lenient.manifest["summary"]["annotators"]
    assert found["ann"]["reliability"] > 0.5 > found["bad"]["reliability"]


def test_attention_checks_are_scored_and_never_become_pairs(given: Any, build: Any) -> None:
    rows = [ranking(f"p{i}", name, {"A": 1, "B": 2}) for i in range(4) for name in ("ann", "bad")]
    for name, ranks in (("ann", {"A": 1, "B": 2, "odd": 3}), ("bad", {"A": 2, "B": 3, "odd": 1})):
        rows += [ranking(f"p{i}", name, ranks, planted=f"p{i}-odd") for i in range(2)]
    checked = given("Ranking", [{**row, "planted": row.get("planted")} for row in rows])
    artifact = build(Preferences, {"rankings": checked}, validation=0)
    assert set(kept(artifact)) == {(f"p{i}-A", f"p{i}-B") for i in range(4)}
    assert artifact.manifest["rejected"] == {"attention_check": 4}
    told = artifact.manifest["summary"]["annotators"]
    assert (told["ann"]["attention"]["value"], told["ann"]["attention"]["count"]) == (1, 4)
    assert (told["bad"]["attention"]["value"], told["bad"]["rankings"]) == (0, 4)
    strict = build(Preferences, {"rankings": checked}, validation=0, min_attention=0.9)
    assert strict.manifest["rejected"] == {"attention_check": 4, "failed_attention": 4}
    assert all(row["annotators"] == 1 for row in kept(strict).values())


def test_adjudicators_decide_what_was_disputed(given: Any, build: Any) -> None:
    rows = [ranking("calm", name, {"A": 1, "B": 2}) for name in ("ann", "bob", "cat")]
    rows += [ranking("hot", name, {"A": 1, "B": 2}) for name in ("ann", "bob")]
    rows += [ranking("hot", "cat", {"A": 2, "B": 1})]
    pool = [
        {"id": f"{p}-{t}", "parents": [], "prompt_id": p, "prompt": [{"role": "user", "content": p}], "sample": 0,
         "completion": [{"role": "assistant", "content": t}]}
        for p in ("calm", "hot") for t in ("A", "B", "C")
    ]  # fmt: skip
    rankings = given("Ranking", rows)
    asked = build(Ask, {"candidates": given("Candidate", pool), "rankings": rankings}, prompts=5, by="disputed")
    assert asked.to_table().column("id").to_pylist() == ["hot-A", "hot-B"]  # C was not ranked by anyone
    decided = given("Ranking", [ranking("hot", "senior", {"A": 2, "B": 1})])
    artifact = build(Preferences, {"rankings": rankings, "adjudications": decided}, validation=0)
    assert set(kept(artifact)) == {("calm-A", "calm-B"), ("hot-B", "hot-A")}
    assert artifact.manifest["rejected"] == {"adjudicated": 3}
    assert kept(artifact)["hot-B", "hot-A"]["annotators"] == 1


def test_broken_rows_are_rejected_and_the_rest_goes_on(given: Any, build: Any) -> None:
    rows = [
        ranking("p", "ann", {"A": 1, "B": 2}),
        ranking("q", "ann", {"A": 1, "B": 2}, ranks=[1], shown=None),
        ranking("r", "ann", {"A": 0, "B": 2}),
        ranking("s", "ann", {"A": 1, "B": 2}, flags=["unsafe", "can't judge"]),
    ]
    artifact = build(Preferences, {"rankings": given("Ranking", rows)}, ignore_flagged=["can't judge"], validation=0)
    assert artifact.manifest["rejected"] == {"flagged": 1, "malformed": 2} and artifact.manifest["failed"] == 2
    assert set(kept(artifact)) == {("p-A", "p-B")}


def test_nothing_usable_is_an_error_that_says_why(given: Any, build: Any) -> None:
    rows = [ranking("p", "ann", {"A": None, "B": None})]
    with pytest.raises(StageFailed, match=r"no row came out: empty \(1\)"):
        build(Preferences, {"rankings": given("Ranking", rows)})
