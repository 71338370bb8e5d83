"""KL-regularised optimisation has a known optimum: pi* ~ pi_ref exp(r / beta), worth beta log Z (Rafailov et al. 2023,
eq. 4 and 5). Here answers are three of four tokens, 64 outcomes, so that everything can be summed up exactly."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.store.artifact import Artifact
from engine.store.store import Store
from generators.text.chat_template import ChatTemplate
from tests.training import tiny_chat
from tests.training.curves import curve
from tests.training.tiny_chat import assistant, one_thread, user
from training.models.answers import EncodedAnswer
from training.models.logprobs import token_logprobs

__all__ = ["one_thread"]  # applies to every test here

Given = Callable[[str, list[dict[str, Any]]], Artifact]
Build = Callable[..., Artifact]

LETTERS = ["red", "blue", "green", "cat"]
IDS = [tiny_chat.tokenizer().convert_tokens_to_ids(letter) for letter in LETTERS]
OUTCOMES = list(itertools.product(range(4), repeat=3))
PROMPT = user("what ?")
# A reward that no sum of parts gives: a value for each place, and some for neighbours.
REWARD = (
    "CASE WHEN completion LIKE 'red%' THEN 1.0 ELSE 0.0 END + CASE WHEN completion LIKE '%cat' THEN 0.7 ELSE 0.0 END "
    "- CASE WHEN completion LIKE '%blue blue%' THEN 0.5 ELSE 0.0 END"
)


def rewards() -> np.ndarray:
    texts = [" ".join(LETTERS[i] for i in outcome) for outcome in OUTCOMES]
    return np.array([1.0 * t.startswith("red") + 0.7 * t.endswith("cat") - 0.5 * ("blue blue" in t) for t in texts])


def letters_only(folder: Path, seed: int) -> Path:
    """A policy that answers with the four letters alone: the other tokens' logits are pushed out of reach."""
    model = tiny_chat.policy(seed, tied=False)
    with torch.no_grad():
        # one hidden channel is 1 everywhere after the norm; the head reads it as a bias
        hidden = model.config.hidden_size
        model.model.embed_tokens.weight[:, hidden - 1] = 6.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[hidden - 1] = 0.0
            layer.mlp.down_proj.weight[hidden - 1] = 0.0
        model.lm_head.weight[:, hidden - 1] = -8.0
        model.lm_head.weight[IDS, hidden - 1] = 0.0
    model.save_pretrained(folder)
    tiny_chat.tokenizer().save_pretrained(folder)
    return folder


def distribution(folder: Path, end: bool = False) -> np.ndarray:
    """log p of the 64 outcomes (and of the end after them), not normalised: what is missing to 1 is the probability of
    other tokens."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = ChatTemplate(tiny_chat.tokenizer()).prompt(PROMPT)
    answers = [EncodedAnswer(prompt, [*[IDS[i] for i in outcome], *([1] if end else [])]) for outcome in OUTCOMES]
    return np.array([float(t.double().sum()) for t in token_logprobs(model, answers)])


def test_the_space_is_closed(tmp_path: Path) -> None:
    logp = distribution(letters_only(tmp_path, 0))
    assert np.exp(logp).sum() == pytest.approx(1, abs=1e-4)


def value(logp: np.ndarray, reference: np.ndarray, beta: float) -> float:
    """E[r] - beta KL(pi || ref), summed over all outcomes."""
    p = np.exp(logp - np.logaddexp.reduce(logp))
    q = reference - np.logaddexp.reduce(reference)
    return float((p * (rewards() - beta * (np.log(p) - q))).sum())


def optimum(reference: np.ndarray, beta: float) -> tuple[float, np.ndarray]:
    """(beta log Z, pi*)."""
    q = reference - np.logaddexp.reduce(reference)
    logits = q + rewards() / beta
    return float(beta * np.logaddexp.reduce(logits)), np.exp(logits - np.logaddexp.reduce(logits))


@pytest.mark.slow
def test_ppo_reaches_beta_log_z(store: Store, tmp_path: Path, given: Given, build: Build) -> None:
    from training.rl.ppo.stage import Ppo

    beta = 0.3
    policy = tiny_chat.artifact(store, letters_only(tmp_path / "policy", 0))
    made = build(
        Ppo,
        {"policy": policy, "prompts": given("Prompt", [{"id": "p", "prompt": PROMPT}])},
        rules={"r": REWARD},
        iterations=120,
        rollouts=512,
        max_tokens=3,
        epochs=2,
        minibatches=2,
        lr=3e-3,
        beta=beta,
        lam=1.0,
        missing_eos=0.0,
        stop_kl=None,
    )
    reference, found = distribution(policy.path), distribution(made.path)
    best, _ = optimum(reference, beta)
    start = value(reference, reference, beta)
    assert value(found, reference, beta) <= best + 1e-6
    assert value(found, reference, beta) == pytest.approx(best, abs=0.01 * best)
    assert start < 0.8 * best  # there was something to learn
    # what the curve says of the last rollouts is what the sums say, but for sampling
    assert curve(made, "r")[-1] - beta * curve(made, "kl")[-1] == pytest.approx(best, abs=0.15)


def odds(outcome: tuple[int, ...]) -> float:
    """exp of a reward whose Bradley-Terry probabilities are fractions of small numbers."""
    text = " ".join(LETTERS[i] for i in outcome)
    return 2.0 ** text.startswith("red") * 2.0 ** text.endswith("cat") * 0.5 ** ("blue blue" in text)


def every_preference(steps: tuple[int, ...] = (1, 9)) -> list[dict[str, Any]]:
    """Rows in which outcome i is preferred to outcome j in exactly the share sigmoid(r_i - r_j) of their comparisons.

    i meets i+1 and i+9 (of 64), which connects all: where each pair's loss is at its minimum, all differences of
    log pi / pi_ref are known.
    """
    rows: list[dict[str, Any]] = []
    for i, step in itertools.product(range(64), steps):
        j = (i + step) % 64
        share = Fraction(odds(OUTCOMES[i])) / Fraction(odds(OUTCOMES[j]))
        for chosen, rejected, times in ((i, j, share.numerator), (j, i, share.denominator)):
            sides = [assistant(" ".join(LETTERS[k] for k in OUTCOMES[o])) for o in (chosen, rejected)]
            for repeat in range(times):
                rows.append({
                    "id": f"{i}-{j}-{chosen}-{repeat}", "prompt_id": "p", "prompt": PROMPT, "chosen": sides[0],
                    "rejected": sides[1], "split": "train",
                })  # fmt: skip
    return rows


def dpo_on_every_preference(
    store: Store, run: Callable[..., Artifact], table: Given, folder: Path, epochs: int = 600
) -> tuple[Artifact, float, float]:
    """(what `dpo` made, its distance in total variation from pi_ref exp(r / beta), the reference's distance).

    Answers close their turn, so that the 64 outcomes are texts with their end; both distributions are taken on them.
    """
    beta, rows = 1.0, every_preference()
    policy = tiny_chat.artifact(store, letters_only(folder / "dpo-policy", 0))
    config = {"beta": beta, "lr": 1e-2, "epochs": epochs, "batch": len(rows), "warmup": 0.02}
    made = run("dpo", config, policy=policy, preferences=table("Preference", rows))

    def closed(where: Path) -> np.ndarray:
        logp = distribution(where, end=True)
        return logp - np.logaddexp.reduce(logp)

    best = closed(policy.path) + np.log([odds(o) for o in OUTCOMES]) / beta
    best = np.exp(best - np.logaddexp.reduce(best))
    found, start = (0.5 * float(np.abs(np.exp(closed(a.path)) - best).sum()) for a in (made, policy))
    return made, found, start
