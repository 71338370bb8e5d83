"""KTO against equation 7 of its paper, worked out by hand, from pairs and from verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from engine.store.artifact import Artifact
from engine.store.store import Store
from tests.training import tiny_chat
from tests.training.curves import losses
from tests.training.preference_rows import preferences
from tests.training.tiny_chat import assistant, one_thread, user
from training.models.answers import EncodedAnswer
from training.models.logprobs import token_logprobs
from training.preference.kto import Marked, rotated
from training.preference.kto_stage import Kto

__all__ = ["one_thread"]  # applies to every test here

Given = Callable[[str, list[dict[str, Any]]], Artifact]
Build = Callable[..., Artifact]


@pytest.fixture
def policy(store: Store, tmp_path: Path) -> Artifact:
    return tiny_chat.artifact(store, tiny_chat.save(tmp_path / "policy"))


@pytest.fixture
def other(store: Store, tmp_path: Path) -> Artifact:
    return tiny_chat.artifact(store, tiny_chat.save(tmp_path / "other", seed=1))


def test_every_answer_is_set_against_another_prompts() -> None:
    marked = [Marked(str(i), EncodedAnswer([i], [10 + i]), i % 2 == 0) for i in range(5)]
    rows = rotated(marked, 2)
    assert [r["completion_ids"] for r in rows] == [[10], [11], [12], [13], [14]]
    assert [r["KL_completion_ids"] for r in rows] == [[11], [10], [13], [12], [10]]  # the last batch holds one


def test_the_first_loss_is_equation_7(policy: Artifact, other: Artifact, given: Given, build: Build) -> None:
    """All answers in one batch and a rate of next to nothing: the only loss is that of the given weights."""
    from transformers import AutoModelForCausalLM

    from engine.seeds import shuffled
    from training.preference import pairs

    rows = [row for row in preferences(24) if row["split"] == "train"]
    made = build(
        Kto,
        {"policy": policy, "preferences": given("Preference", rows), "reference": other},
        lr=1e-12, beta=0.3, batch=2 * len(rows), good_weight=1.2,
    )  # fmt: skip
    encoded = [
        (pairs.encode(pairs.learning(tiny_chat.tokenizer()), row["prompt"], row[side]), side == "chosen")
        for row in rows
        for side in ("chosen", "rejected")
    ]
    encoded = [encoded[i] for i in shuffled(range(len(encoded)), 0, "marked")]
    mismatched = [EncodedAnswer(a.prompt, encoded[i - 1][0].response) for i, (a, _) in enumerate(encoded)]
    ours, theirs = (AutoModelForCausalLM.from_pretrained(a.path).eval() for a in (policy, other))

    def ratios(answers: list[EncodedAnswer]) -> list[float]:
        pair = zip(token_logprobs(ours, answers), token_logprobs(theirs, answers), strict=True)
        return [float((a - b).sum()) for a, b in pair]

    z0 = max(sum(ratios(mismatched)) / len(mismatched), 0.0)
    total = 0.0
    for ratio, (_, good) in zip(ratios([a for a, _ in encoded]), encoded, strict=True):
        sign, weight = (1, 1.2) if good else (-1, 1.0)
        total += weight * (1 - 1 / (1 + math.exp(-sign * 0.3 * (ratio - z0))))
    assert losses(made) == pytest.approx([total / len(encoded)], abs=1e-5)


def test_it_learns_from_verdicts_alone(policy: Artifact, given: Given, build: Build) -> None:
    """Answers about blue were liked, others were not: three bad ones for a good one."""
    colours = ["blue", "red", "green", "cat"]
    candidates = [
        {"id": f"{word}-{colour}", "prompt_id": word, "prompt": user(f"what colour the {word} ?"),
         "completion": assistant(colour)}
        for word in ["cat", "dog", "number", "animal", "good", "bad", "one", "two"] for colour in colours
    ]  # fmt: skip
    verdicts = [
        {"id": f"v-{c['id']}", "subject": c["id"], "metric": "liked", "value": float(c["id"].endswith("blue"))}
        for c in candidates
    ]
    made = build(
        Kto,
        {"policy": policy, "candidates": given("Candidate", candidates), "verdicts": given("Verdict", verdicts)},
        lr=5e-3, epochs=6, batch=8,
    )  # fmt: skip
    summary = made.manifest["summary"]
    assert (summary["good"], summary["bad"], summary["good_weight"]) == (8, 24, 3.0)
    from transformers import AutoModelForCausalLM

    def preferred(folder: Path) -> float:
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        logp = token_logprobs(
            model,
            [
                EncodedAnswer([2, 5 + i, 1, 3], [tiny_chat.tokenizer().convert_tokens_to_ids(c), 1])
                for c in colours
                for i in range(3)
            ],
        )
        totals = [sum(float(t.sum()) for t in logp[3 * k : 3 * k + 3]) for k in range(4)]
        return totals[0] - max(totals[1:])

    assert preferred(made.path) > preferred(policy.path) + 3


def test_answers_of_one_kind_only_are_refused(policy: Artifact, given: Given, build: Build) -> None:
    candidate = {"id": "a", "prompt_id": "p", "prompt": user("what ?"), "completion": assistant("blue")}
    verdict = {"id": "v", "subject": "a", "metric": "liked", "value": 1.0}
    with pytest.raises(UserError, match="1 of 1 answers are good: KTO needs good and bad ones"):
        build(
            Kto,
            {"policy": policy, "candidates": given("Candidate", [candidate]), "verdicts": given("Verdict", [verdict])},
        )
