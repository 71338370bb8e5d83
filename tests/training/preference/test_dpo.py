"""DPO against its formula, worked out by hand from log-probabilities that transformers gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from engine.store.artifact import Artifact
from engine.store.store import Store
from tests.training import killed, tiny_chat
from tests.training.curves import losses
from tests.training.preference_rows import answers_of, by_hand, preferences
from tests.training.tiny_chat import assistant, one_thread, user
from training.models.answers import Answer
from training.models.logprobs import token_logprobs
from training.preference.dpo_stage import Dpo

__all__ = ["one_thread"]  # applies to every test here

Given = Callable[[str, list[dict[str, Any]]], Artifact]
Build = Callable[..., Artifact]


@pytest.fixture
def policy(store: Store, tmp_path: Path) -> Artifact:
    return tiny_chat.artifact(store, tiny_chat.save(tmp_path / "policy"))


@pytest.fixture
def other(store: Store, tmp_path: Path) -> Artifact:
    return tiny_chat.artifact(store, tiny_chat.save(tmp_path / "other", seed=1))


def test_the_first_loss_is_ln_2(policy: Artifact, given: Given, build: Build) -> None:
    made = build(Dpo, {"policy": policy, "preferences": given("Preference", preferences(32))}, lr=3e-3, batch=8)
    assert losses(made)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(made)[-1] < 0.6


def test_a_reference_of_its_own_gives_the_loss_worked_out_by_hand(
    policy: Artifact, other: Artifact, given: Given, build: Build
) -> None:
    """One batch holds all pairs and the rate is next to nothing, so that the only loss is that of the given weights."""
    rows = [row for row in preferences(24) if row["split"] == "train"]
    made = build(
        Dpo,
        {"policy": policy, "preferences": given("Preference", rows), "reference": other},
        lr=1e-12,
        beta=0.3,
        batch=len(rows),
    )
    expected = by_hand(policy.path, other.path, rows, 0.3)
    assert losses(made) == pytest.approx([expected], abs=1e-5)
    assert abs(expected - math.log(2)) > 1e-3


def test_it_learns_what_people_preferred_and_says_so_on_held_out_prompts(
    policy: Artifact, given: Given, build: Build
) -> None:
    rows = preferences(160)
    made = build(Dpo, {"policy": policy, "preferences": given("Preference", rows)}, lr=3e-3, epochs=2)
    summary = made.manifest["summary"]
    assert summary["accuracy"] == 1.0 and summary["validation_pairs"] == 40
    held_out = [row for row in rows if row["split"] == "validation"]
    assert by_hand(made.path, policy.path, held_out, 0.1) < 0.5


@pytest.mark.parametrize("loss", ["simpo", "orpo", "cpo"])
def test_losses_without_a_reference_are_their_papers(policy: Artifact, given: Given, build: Build, loss: str) -> None:
    """SimPO (arXiv:2405.14734, eq. 6), ORPO (arXiv:2403.07691, eq. 6-7), CPO (arXiv:2401.08417, eq. 3 and 5).

    ORPO's likelihood is that of prompt and answer, as in its authors' code.
    """
    from transformers import AutoModelForCausalLM

    rows = [row for row in preferences(24) if row["split"] == "train"]
    options = {"simpo": {"target_margin": 0.4}, "cpo": {"sft_weight": 0.5}, "orpo": {}}[loss]
    made = build(
        Dpo,
        {"policy": policy, "preferences": given("Preference", rows)},
        lr=1e-12, beta=0.3, batch=len(rows), loss=loss, **options,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(policy.path).eval()
    logps = token_logprobs(model, answers_of(rows))
    chosen, rejected = logps[0::2], logps[1::2]
    if loss == "orpo":
        whole = [Answer([*a.prompt, *a.response][:1], [*a.prompt, *a.response][1:]) for a in answers_of(rows)[0::2]]
        nll = -float(torch.cat(token_logprobs(model, whole)).mean())
    else:
        nll = -float(torch.cat(chosen).mean())
    total = 0.0
    for c, r in zip(chosen, rejected, strict=True):
        if loss == "simpo":
            gap = 0.3 * float(c.mean() - r.mean()) - 0.4
        elif loss == "cpo":
            gap = 0.3 * float(c.sum() - r.sum())
        else:
            odds = [float(m) - math.log1p(-math.exp(m)) for m in (c.mean(), r.mean())]
            gap = odds[0] - odds[1]
        total += math.log1p(math.exp(-gap))
    mean = total / len(rows)
    expected = {"simpo": mean, "cpo": mean + 0.5 * nll, "orpo": nll + 0.3 * mean}[loss]
    assert losses(made) == pytest.approx([expected], rel=1e-4)


def test_tokens_beyond_the_shorter_answer_count_less(
    policy: Artifact, other: Artifact, given: Given, build: Build
) -> None:
    """LD-DPO (arXiv:2409.06411, eq. 9), and the loss of an untrained adapter, whose base is the reference."""
    from transformers import AutoModelForCausalLM

    rows = [
        {"id": str(i), "prompt_id": str(i), "prompt": user("what ?"), "chosen": assistant(c), "rejected": assistant(r)}
        for i, (c, r) in enumerate([("blue", "red red red"), ("good cat is blue", "bad"), ("one two", "two one")])
    ]
    made = build(
        Dpo,
        {"policy": policy, "preferences": given("Preference", rows), "reference": other},
        lr=1e-12, beta=0.3, batch=3, length_decay=0.25,
    )  # fmt: skip
    models = [AutoModelForCausalLM.from_pretrained(a.path).eval() for a in (policy, other)]
    answers = answers_of(rows)
    ratios = [a - b for a, b in zip(*(token_logprobs(m, answers) for m in models), strict=True)]
    total = 0.0
    for c, r in zip(ratios[0::2], ratios[1::2], strict=True):
        shared = min(len(c), len(r))
        decayed = [float(x[:shared].sum() + 0.25 * x[shared:].sum()) for x in (c, r)]
        total += math.log1p(math.exp(-0.3 * (decayed[0] - decayed[1])))
    assert losses(made) == pytest.approx([total / 3], abs=1e-5)
    adapted = build(
        Dpo, {"policy": policy, "preferences": given("Preference", rows)}, lr=1e-3, batch=3, epochs=2, lora={"r": 4}
    )
    assert losses(adapted)[0] == pytest.approx(math.log(2), abs=1e-6) and losses(adapted)[1] < math.log(2)


def test_an_option_without_effect_is_refused() -> None:
    with pytest.raises(ValidationError, match="`label_smoothing` has no effect on `sigmoid`"):
        Dpo(label_smoothing=0.1)
    with pytest.raises(ValidationError, match="`exo_pair` needs a `label_smoothing` above 0"):
        Dpo(loss="exo_pair")
    with pytest.raises(ValidationError, match="`length_decay` has no effect on `simpo`"):
        Dpo(loss="simpo", length_decay=0.5)


def test_a_killed_training_ends_with_the_same_bits(
    tmp_path: Path, policy: Artifact, given: Given, store: Store
) -> None:
    made = given("Preference", preferences(64))
    spec: dict[str, Any] = {
        "store": store.url,
        "stage": "training.preference.dpo_stage:Dpo",
        "config": {"seed": 3, "epochs": 3, "batch": 8, "lr": 1e-3, "checkpoint_every": 4},
        "inputs": {"policy": {"p": ["Model", str(policy.path)]}, "preferences": {"d": ["", made.id]}},
    }
    killed.start(spec, tmp_path, kill_at=7)
    resumed = killed.start(spec, tmp_path, kill_at=None)
    whole = killed.start({**spec, "store": killed.another_store(store, made, tmp_path)}, tmp_path, kill_at=None)
    assert resumed is not None and whole is not None and resumed.digest == whole.digest
