"""PPO beside TRL 1.12.0's PPOTrainer, the last there was, in an environment that is made on first use."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parts.claims import Claim, claim
from benchmarks.parts.policies import Bench, steered
from engine.stage.job import Job
from engine.stage.stage import load
from engine.store.artifact import Artifact

ROOT = Path(__file__).parents[2]
PEER = Path(tempfile.gettempdir()) / "flywheel-trl-1.12"

# What both are given: TRL's own defaults, but for the temperature (ours samples from the policy itself), the rate and the penalty.
SETTINGS: dict[str, Any] = {
    "rollouts": 128, "iterations": 20, "max_tokens": 53, "lr": 1e-3, "beta": 0.05, "clip": 0.2, "gamma": 1.0, "lam": 0.95,
    "missing_eos": 1.0,
}  # fmt: skip
# The rest is each one's defaults: ours are the stage's, TRL's are written down.
TRL: dict[str, Any] = {"epochs": 4, "minibatches": 1, "clip_value": 0.2, "value_weight": 0.1}
# Of the tests, where both trainers mostly run Python, and of the model that the quickstart trains on a laptop.
SHAPES = {"30 thousand parameters": {}, "the quickstart's depth and width": {"hidden": 160, "layers": 4}}


def peer_python() -> str:
    """The interpreter of TRL 1.12.0's environment, made and filled if need be."""
    python = PEER / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEER)], check=True, stdout=sys.stderr)
        uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
        pip = [uv, "pip", "install", "--python", str(python)] if uv else [str(python), "-m", "pip", "install"]
        links = [part for link in os.environ.get("PIP_FIND_LINKS", "").split() for part in ("--find-links", link)]
        packages = [
            "trl==1.12.0",
            f"transformers=={version('transformers')}",
            f"torch=={version('torch').split('+')[0]}",
        ]
        subprocess.run([*pip, "-q", *links, *packages, "pandas"], check=True, stdout=sys.stderr)
    return str(python)


def against_trl(bench: Bench, quick: bool) -> list[Claim]:
    """Both shapes, each with the same policy, reward, batch and number of episodes; the trainers take turns by seed."""
    import torch
    from transformers import LlamaForSequenceClassification

    from tests.training import tiny_chat

    # The reward: a small random network that both read at the end of the answer, scaled to unit deviation or so.
    config = tiny_chat.policy().config
    config.num_labels = 1
    torch.manual_seed(7)
    judge: Any = LlamaForSequenceClassification(config).eval()
    judge.score.weight.data.normal_(0, 0.2)
    judge.save_pretrained(bench.folder / "judge")
    tiny_chat.tokenizer().save_pretrained(bench.folder / "judge")
    reward = bench.model(bench.folder / "judge", "RewardModel")
    settings = {**SETTINGS, "iterations": 4 if quick else SETTINGS["iterations"]}
    return [
        found
        for number, (name, shape) in enumerate(SHAPES.items())
        # Never the pad token: in the middle of an answer TRL would take it for the end.
        for found in race(bench, name, steered(bench, f"policy{number}", {0: -20.0}, **shape), reward, settings, [0] if quick else [0, 1, 2, 3, 4])
    ]  # fmt: skip


def race(
    bench: Bench, name: str, policy: Artifact, reward: Artifact, settings: dict[str, Any], seeds: list[int]
) -> list[Claim]:
    from tests.training import tiny_chat
    from tests.training.tiny_chat import PROMPTS
    from training.rl.rollouts import load_questions

    prompts = bench.table("Prompt", PROMPTS)
    job = Job(bench.store, "ids", "Model", {"prompts": {"p": prompts}}, 0)
    ids = [question.token_ids for question in load_questions(job, tiny_chat.tokenizer())]
    versions: dict[str, str] = {}

    def trl(seed: int, **changed: Any) -> dict[str, Any]:
        out = policy.path.with_name("-".join([policy.path.name, str(seed), *changed]))
        out.mkdir()
        spec = {**settings, **TRL, **changed, "policy": str(policy.path), "reward": str(reward.path), "seeds": [seed],
                "out": str(out), "prompts": ids}  # fmt: skip
        (out / "spec.json").write_text(json.dumps(spec))
        done = subprocess.run(
            [peer_python(), str(ROOT / "benchmarks" / "peers" / "trl_ppo.py"), str(out / "spec.json")],
            capture_output=True, text=True, cwd=out,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"TRL's PPO failed: {done.stderr[-1500:]}")
        said = json.loads(done.stdout.splitlines()[-1])
        versions.update(said["versions"])
        return said["runs"][0]

    def ours(seed: int, **changed: Any) -> dict[str, Any]:
        return timed(bench, {**settings, **changed, "seed": seed}, policy, reward, prompts)

    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    for seed in seeds:
        runs["trl"].append(trl(seed))
        runs["ours"].append(ours(seed))
    # Told beside, of one seed: each with the passes and steps of the other, and ours with the answers sampled meanwhile.
    alike = {name: load("ppo").model_fields[name].default for name in ("epochs", "minibatches")}
    theirs = {name: TRL[name] for name in alike}
    runs["ours_with_trl_settings"], runs["trl_with_our_settings"] = [ours(seeds[0], **theirs)], [trl(seeds[0], **alike)]
    runs["ours_ahead"] = [ours(seeds[0], ahead=True)]

    def rate(who: str, seconds: str) -> float:
        return sum(r["episodes"] for r in runs[who]) / sum(r[seconds] for r in runs[who])

    rates = {who: rate(who, "seconds") for who in runs}
    ratio = rates["ours"] / rates["trl"]
    rewards = {
        who: [judged(bench, policy, reward, Path(r["folder"]), settings["max_tokens"]) for r in ran]
        for who, ran in runs.items()
    }
    means = {who: float(np.mean([r["reward"] for r in found])) for who, found in rewards.items()}
    error = math.hypot(
        *(np.std([r["reward"] for r in rewards[who]], ddof=1) / math.sqrt(len(seeds)) if len(seeds) > 1 else 0.0
          for who in ("ours", "trl"))
    )  # fmt: skip
    spent = float(np.mean([r["kl"] for r in rewards["ours"]]))
    beside = best_of_n(bench, policy, reward, spent, settings["max_tokens"])
    return [
        claim(f"ppo: episodes/s against TRL 1.12.0's PPOTrainer, {name}", ratio, ">= 5", ratio >= 5, episodes_per_s=rates,
              by_cpu_seconds=rate("ours", "cpu_seconds") / rate("trl", "cpu_seconds"), peer=versions, settings=settings,
              settings_of_trl=TRL),
        claim(f"ppo: final reward against TRL's, 5 seeds, {name}", means["ours"] - means["trl"],
              ">= 0 (equal: within a standard error)", len(seeds) == 5 and means["ours"] - means["trl"] >= -error,
              standard_error=error, each=rewards, best_of_n_at_that_kl=beside),
    ]  # fmt: skip


def cpu_seconds() -> float:
    """Of this process and the sampler's, if that is one of its own."""
    import psutil

    children = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(spent.user + spent.system for spent in children)


def timed(
    bench: Bench, config: dict[str, Any], policy: Artifact, reward: Artifact, prompts: Artifact
) -> dict[str, Any]:
    """Our PPO: the seconds of all iterations after the first, as the peer counts its own."""
    ticks: list[tuple[float, float]] = []

    def tick(event: dict[str, Any]) -> None:
        if event["event"] == "metric":
            ticks.append((time.perf_counter(), cpu_seconds()))

    made = bench.run("ppo", config, tick, policy=policy, reward=reward, prompts=prompts)
    return {
        "seed": config["seed"], "folder": str(made.path), "episodes": config["rollouts"] * (len(ticks) - 1),
        "seconds": ticks[-1][0] - ticks[0][0], "cpu_seconds": ticks[-1][1] - ticks[0][1],
    }  # fmt: skip


_engines: dict[str, Any] = {}


def _sampled(bench: Bench, policy: Artifact, folder: Path, count: int, max_tokens: int) -> tuple[Any, list[Any]]:
    """(model, rollouts): answers of the model in this folder, sampled by one engine for all."""
    from transformers import AutoModelForCausalLM

    from tests.training import tiny_chat
    from tests.training.tiny_chat import PROMPTS
    from training.rl.rollouts import load_questions
    from training.rl.sampler import Sampler, start_engine

    prompts = bench.table("Prompt", PROMPTS)
    job = Job(bench.store, "judged", "Model", {"prompts": {"p": prompts}}, 1)
    questions = load_questions(job, tiny_chat.tokenizer())
    engine = _engines.get(policy.location) or _engines.setdefault(
        policy.location, start_engine(policy.location, questions, max_tokens, 0.3, job)
    )
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()
    asked = [questions[i % len(questions)] for i in range(count)]
    return model, Sampler(job, engine, model, tiny_chat.tokenizer(), max_tokens).sample(asked, 0)


def judged(bench: Bench, policy: Artifact, reward: Artifact, folder: Path, max_tokens: int) -> dict[str, float]:
    """The reward of 512 answers (not ended: less 1, as in training) and the KL to the start."""
    from transformers import AutoModelForCausalLM

    from training.models.logprobs import token_logprobs
    from training.reward.model import RewardModel
    from training.rl.scoring import Scorer

    model, rollouts = _sampled(bench, policy, folder, 512, max_tokens)
    scores = Scorer(RewardModel.load(str(reward.path)), {}, {}).score(rollouts)[0]
    answers = [rollout.answer for rollout in rollouts]
    start = AutoModelForCausalLM.from_pretrained(policy.path, trust_remote_code=False).eval()
    ratio = [
        float((a - b).sum())
        for a, b in zip(token_logprobs(model, answers), token_logprobs(start, answers), strict=True)
    ]
    cut = np.array([not rollout.ended for rollout in rollouts])
    return {
        "reward": float((scores - cut).mean()),
        "kl": float(np.mean(ratio)),
        "length": float(np.mean([len(a.response) for a in answers])),
    }


def best_of_n(bench: Bench, policy: Artifact, reward: Artifact, spent: float, max_tokens: int) -> dict[str, float]:
    """The reward of the best of n answers of the untrained policy, at the greatest n (up to 64) within this KL."""
    from training.reward.model import RewardModel
    from training.rl.kl import best_of_n as best_of_n_kl
    from training.rl.scoring import Scorer

    _, rollouts = _sampled(bench, policy, policy.path, 8 * 64 * 4, max_tokens)
    scores = Scorer(RewardModel.load(str(reward.path)), {}, {}).score(rollouts)[0]
    scores = scores - np.array([not rollout.ended for rollout in rollouts])
    n = max(n for n in range(1, 65) if best_of_n_kl(n) <= max(spent, 0.0))
    by_prompt = scores.reshape(-1, 8).T  # answers go round the 8 prompts
    best = by_prompt[:, : by_prompt.shape[1] // n * n].reshape(8, -1, n).max(2)
    return {"n": n, "kl_bound": best_of_n_kl(n), "ppo_kl": spent, "reward": float(best.mean())}
