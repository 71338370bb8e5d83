"""A judge over a real client and server: verdicts do not depend on the order shown, and bias is reported."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from engine.errors import StageFailed, UserError
from generators.judge.agreement_with_people import kappa
from generators.judge.stage import Judge
from tests.generators.faulty_server import FaultyServer

TEXTS = [["a", "bbb", "cc"], ["dddd", "e"], ["ff", "gg", "hhhhh", "i"], ["alone"]]
CANDIDATES = [
    {
        "id": f"{p:016x}{s:016x}", "parents": [], "prompt_id": f"{p:032x}", "sample": s, "model": f"model{s}",
        "prompt": [{"role": "user", "content": f"Question {p}?"}],
        "completion": [{"role": "assistant", "content": text}],
    }
    for p, texts in enumerate(TEXTS)
    for s, text in enumerate(texts)
]  # fmt: skip
LENGTH = {row["id"]: len(row["completion"][0]["content"]) for row in CANDIDATES}


def prefers_longer(messages: list[dict[str, str]], seed: int) -> str:
    shown = re.search(r"\[Answer A\]\n(.*)\n\n\[Answer B\]\n(.*)\n\n", messages[0]["content"])
    assert shown
    a, b = len(shown[1]), len(shown[2])
    return json.dumps({"winner": "A" if a > b else "B" if b > a else "tie"})


def judged(given: Any, build: Any, answer: Any, **config: Any) -> Any:
    with FaultyServer(share=0.1, answer=answer) as faulty:
        server = {"model": "judge", "url": faulty.url, "timeout_s": 1.0}
        return build(Judge, {"candidates": given("Candidate", CANDIDATES)}, server=server, partition=2, **config)


def test_pairs_are_judged_in_both_orders(given: Any, build: Any) -> None:
    made = judged(given, build, prefers_longer, pairwise=True)
    got = {(r["subject"], json.loads(r["text"])["against"]): r["value"] for r in made.to_table().to_pylist()}
    groups = [[row["id"] for row in CANDIDATES if row["prompt_id"] == f"{p:032x}"] for p in range(len(TEXTS))]
    expected: dict[tuple[str, str], float] = {}
    for one, other in (pair for group in groups for pair in combinations(group, 2)):
        value = 0.5 + 0.5 * ((LENGTH[one] > LENGTH[other]) - (LENGTH[one] < LENGTH[other]))
        expected[one, other], expected[other, one] = value, 1 - value
    assert got == expected
    summary = made.manifest["summary"]
    rates = {name: rate["value"] for name, rate in summary.pop("win_rates").items()}
    model = {row["id"]: (row["model"], row["prompt_id"]) for row in CANDIDATES}
    for name, rate in rates.items():  # the mean over prompts of the mean over the pairs of a prompt
        by_prompt: dict[str, list[float]] = {}
        for (one, _), value in expected.items():
            if model[one][0] == name:
                by_prompt.setdefault(model[one][1], []).append(value)
        assert rate == pytest.approx(sum(sum(v) / len(v) for v in by_prompt.values()) / len(by_prompt))
    assert summary == {"first_preferred": 0.0, "order_decided": 0.0}
    assert made.manifest["rejected"] == {"no_pair": 1}  # the prompt with one answer


def test_a_judge_that_refuses_is_quoted_and_is_no_failure(given: Any, build: Any) -> None:
    def refuses(messages: list[dict[str, str]], seed: int) -> Any:
        message = {"role": "assistant", "content": None, "refusal": "I judge nobody."}
        return {"finish_reason": "stop", "message": message} if "dddd" in messages[0]["content"] else '{"winner": "A"}'

    made = judged(given, build, refuses, pairwise=True)
    assert made.manifest["rejected"] == {"no_pair": 1, "refusal": 1} and made.manifest["failed"] == 0
    assert "I judge nobody." in made.rejected().column("detail").to_pylist()
    alone = {"candidates": given("Candidate", CANDIDATES[-1:])}
    with pytest.raises(StageFailed, match=r"no row came out: no_pair \(1\)"):
        build(Judge, alone, pairwise=True, server={"model": "judge", "url": "http://127.0.0.1:1/v1"})


def test_a_judge_that_always_takes_the_first_decides_nothing_and_is_found_out(given: Any, build: Any) -> None:
    made = judged(given, build, lambda messages, seed: '{"winner": "A"}', pairwise=True)
    assert set(made.to_polars()["value"]) == {0.5}
    summary = made.manifest["summary"]
    assert {rate["value"] for rate in summary.pop("win_rates").values()} == {0.5}
    assert summary == {"first_preferred": 1.0, "order_decided": 1.0}


def test_aspects_are_rated_and_nonsense_is_rejected(given: Any, build: Any) -> None:
    def rates(messages: list[dict[str, str]], seed: int) -> str:
        text = next(m["content"] for m in messages if "[Answer]" in m["content"])
        answer = text.split("[Answer]\n")[1].split("\n")[0]
        return "five stars" if answer == "alone" else json.dumps({"brevity": max(1, 5 - len(answer)), "tone": 3})

    made = judged(given, build, rates, rubric={"brevity": "it is short", "tone": "it is kind"}, rules={"one": "1"})
    values = {(r["subject"], r["metric"]): r["value"] for r in made.to_table().to_pylist()}
    for one, length in LENGTH.items():
        assert values[one, "one"] == 1.0
        if length == 5 and one == CANDIDATES[-1]["id"]:
            assert (one, "tone") not in values
        else:
            assert values[one, "brevity"] == max(1, 5 - length) and values[one, "tone"] == 3
    assert made.manifest["rejected"] == {"invalid_json": 1}
    scores = made.manifest["summary"]["scores"]
    assert scores["tone"]["counts"] == {"3": 9} and scores["brevity"]["counts"] == {"1": 2, "2": 1, "3": 3, "4": 3}
    assert scores["brevity"]["mean"] == pytest.approx((2 * 1 + 2 + 3 * 3 + 3 * 4) / 9, abs=1e-6)


def test_graded_against_one_model_by_a_principle(given: Any, build: Any) -> None:
    seen: dict[frozenset[str], set[str]] = {}

    def grades(messages: list[dict[str, str]], seed: int) -> str:
        shown = re.search(
            r"judging by: (.*?)\. Their order.*\[Answer A\]\n(.*)\n\n\[Answer B\]\n(.*)\n\n",
            messages[0]["content"],
            re.S,
        )
        assert shown
        seen.setdefault(frozenset(shown.groups()[1:]), set()).add(shown[1])
        a, b = len(shown[2]), len(shown[3])
        return json.dumps({"preference": 0.2 + 0.8 * a / (a + b)})  # it leans towards the first by 0.1, which cancels

    principles = ("is it kind", "is it short")
    made = judged(given, build, grades, pairwise=True, graded=True, against="model0", principles=principles)
    length = {(row["model"], row["prompt_id"]): LENGTH[row["id"]] for row in CANDIDATES}
    for model, rate in made.manifest["summary"]["win_rates"].items():
        values = [
            0.1 + 0.8 * length[model, p] / (length[model, p] + length["model0", p]) for m, p in length if m == model
        ]
        assert rate["value"] == pytest.approx(sum(values) / len(values)) and model != "model0"
    assert all(len(principle) == 1 for principle in seen.values())  # the same in both orders
    assert set.union(*seen.values()) == set(principles)
    with pytest.raises(UserError, match=r"`against: modle0` made none of the candidates\. Did you mean `model0`"):
        judged(given, build, grades, pairwise=True, against="modle0")


def test_kappa_of_a_worked_example() -> None:
    # Two raters, 50 items, [[20, 5], [10, 15]]: observed 0.7, by chance 0.5 (Cohen, 1960).
    a = np.repeat([1, 1, 0, 0], [20, 5, 10, 15])
    b = np.repeat([1, 0, 1, 0], [20, 5, 10, 15])
    assert kappa(a, b) == pytest.approx(0.4)


def test_calibration_against_people(given: Any, build: Any) -> None:
    """The judge takes the longer answer; ada does so too, ben prefers the shorter, and cleo is another judge."""
    rows = list[dict[str, Any]]()
    for annotator, kind, sign in (("ada", "person", -1), ("ben", "person", 1), ("cleo", "judge", 1)):
        for p, texts in enumerate(TEXTS):
            lengths = [sign * len(text) for text in texts]
            rows.append({
                "id": f"{annotator}{p}", "parents": [], "prompt_id": f"{p:032x}", "annotator": annotator,
                "annotator_kind": kind, "candidates": [f"{p:016x}{s:016x}" for s in range(len(texts))],
                "completions": texts, "ranks": [1 + sum(other < mine for other in lengths) for mine in lengths],
            })  # fmt: skip
    rows[0]["ranks"][0] = None  # ada did not rank one answer
    with FaultyServer(share=0, answer=prefers_longer) as server:
        made = build(
            Judge, {"candidates": given("Candidate", CANDIDATES), "rankings": given("Ranking", rows)}, pairwise=True,
            server={"model": "judge", "url": server.url},
        )  # fmt: skip
    told = made.manifest["summary"]["calibration"]["pairwise"]
    # Ten pairs, one of them a tie; ada judged two fewer. She agrees with the judge always, ben on the tie alone.
    assert told["items"] == 8 + 10 and told["agreement"]["value"] == pytest.approx((8 + 1) / 18, abs=1e-6)
    assert told["judge_prefers_longer"] == 1.0 and told["people_prefer_longer"] == pytest.approx(7 / 16, abs=1e-6)
    assert told["length_bias"]["value"] == pytest.approx(9 / 16, abs=1e-6)
    assert told["people_agree"] == pytest.approx(1 / 8)
    low, value, high = (told["kappa"][name] for name in ("low", "value", "high"))
    assert low <= value <= high and value < 0.2


def test_stored_answers_are_scored_again_without_generating_any(given: Any, build: Any, monkeypatch: Any) -> None:
    """Another judge and a verifier over the same candidates: the policy is never loaded, and joins on the same ids."""
    monkeypatch.setattr("generators.backends.open.load_tokenizer", None)  # loading a model would fail
    candidates = given("Candidate", [{**row, "reference": "assert len('a') == 1"} for row in CANDIDATES])
    asked = list[str]()

    def shorter(messages: list[dict[str, str]], seed: int) -> str:
        asked.append(messages[0]["content"])
        first = json.loads(prefers_longer(messages, seed))["winner"]
        return json.dumps({"winner": {"A": "B", "B": "A"}.get(first, "tie")})

    made = list[Any]()
    for answer, name in ((prefers_longer, "one"), (shorter, "two")):
        with FaultyServer(share=0, answer=answer) as server:
            made.append(
                build(Judge, {"candidates": candidates}, pairwise=True, server={"model": name, "url": server.url})
            )
    values = [{(r["subject"], r["parents"][1]): r["value"] for r in a.to_table().to_pylist()} for a in made]
    assert values[0].keys() == values[1].keys() and all(values[0][k] == 1 - values[1][k] for k in values[0])
    assert len(asked) == 20 and all("[Answer A]" in text for text in asked)  # two orders of ten pairs, nothing else
    again = build(Judge, {"candidates": candidates}, verifiers=["code", "json"])
    scores = {(r["subject"], r["metric"]): r["value"] for r in again.to_table().to_pylist()}
    assert {subject for subject, _ in scores} == set(LENGTH)
    assert {scores[one, "code"] for one in LENGTH} == {0.0} and {scores[one, "json"] for one in LENGTH} == {0.0}


def test_a_judge_needs_something_to_judge_by() -> None:
    with pytest.raises(ValidationError, match="nothing to judge by"):
        Judge()
