"""Reward models and evaluation, judged: simulation whose truth is known, AlpacaEval, GSM8K, and bad input.

    python -m benchmarks.rewards --json [--quick] [--only PART ...]

1. `rankings`: the `reward` stage on simulated rankings of known utilities: accuracy against Bayes' optimum, calibration,
   shuffled labels.
2. `annotators`: 30 % of the annotators rank at random. What that costs, and what is left of it when each counts by the
   reliability that a `preferences` stage finds in the rankings alone.
3. `optimisation`: policies of rising KL against a proxy whose errors have heavy tails: one reward model, and an ensemble
   that is scored pessimistically and stopped by held-out answers.
4. `alpaca`: reward models on AlpacaEval's real answers, on prompts and models they have not seen, against length alone.
5. `length`: length-controlled win rates of AlpacaEval's models against the raw ones and against those published.
6. `gsm8k`: final answers of all 7,473 problems, written in several ways.
7. `input`: what can't be learnt from is refused, left out or told.

The data of 4 to 6 are found in `$FLYWHEEL_DATA`, or in `../shared/data` beside the project; without them those lines say so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.parts.alpaca_eval import DATA, alpaca, length
from benchmarks.parts.claims import Claim, artifact, claim
from benchmarks.parts.word_world import World, assistant, model, user, words
from engine.errors import UserError
from engine.execution.worker import carry_out
from engine.stage.stage import load
from engine.statistics import bootstrap
from engine.store.store import Store
from generators.rules.mathematics import equality, numbers
from training.reward import calibration
from training.rl.guard import Guard
from training.rl.guard_settings import GuardConfig
from training.rl.overoptimisation import Point, held_out

Floats = NDArray[np.float64]


# -- 1. rankings -------------------------------------------------------------------------------------------------------


def rankings(quick: bool) -> list[Claim]:
    import torch

    from generators.text.learning_template import learning
    from training.models.answers import encode_all
    from training.reward.model import RewardModel
    from training.reward.reward_stage import Reward

    torch.set_num_threads(1)
    count, shuffled_count = (3_000, 800) if quick else (20_000, 3_000)
    world = World(0)
    tokenizer = words(len(world.worth))
    claims: list[Claim] = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"{folder}/store")
        start = model(store, Path(folder) / "start", tokenizer, 32, 1, 32)
        rows: list[Any] = []
        for i in range(count):
            answers = [world.answer() for _ in range(4)]
            rows.append(world.row(f"r{i}", i, answers, world.rank(answers), "ada"))
        config: dict[str, Any] = {
            "seed": 0,
            "lr": 3e-3,
            "batch": 64,
            "held_out": 0.1,
            "centre": 0.0,
            "checkpoint_every": 10**6,
        }
        made = carry_out(
            store,
            "reward",
            Reward(**config),
            {"model": {"m": start}, "rankings": {"r": artifact(store, "Ranking", rows)}},
        )
        reward = RewardModel.load(str(made.path))
        a = [world.answer() for _ in range(20_000)]
        b = [world.answer() for _ in range(20_000)]
        texts = [" ".join(f"w{word}" for word in answer) for answer in [*a, *b]]
        scores = reward.score(encode_all(learning(tokenizer), user("w0"), texts)).double().numpy()
        difference = scores[: len(a)] - scores[len(a) :]
        truth = np.array([world.worth[x].sum() - world.worth[y].sum() for x, y in zip(a, b, strict=True)])
        p = 1 / (1 + np.exp(-truth))
        accuracy, bayes = float(np.where(difference > 0, p, 1 - p).mean()), float(np.maximum(p, 1 - p).mean())
        won = np.random.default_rng(1).random(len(p)) < p
        chosen = np.where(won, difference, -difference) / reward.temperature
        ece = calibration.ece_interval(chosen, [str(i) for i in range(len(p))])
        summary = made.manifest["summary"]
        claims += [
            claim("reward_accuracy_of_bayes", round(accuracy, 5), f"within .01 of Bayes' {bayes:.5f}", bayes - accuracy <= 0.01,
                  rankings=count, bayes=round(bayes, 5), cpu_s=made.manifest["timings"]["cpu_s"]),
            claim("reward_calibrated_ece", round(ece.value, 5), "<= .03", ece.value <= 0.03,
                  interval=[round(ece.low, 5), round(ece.high, 5)], temperature=round(reward.temperature, 4),
                  told_by_the_stage={k: summary[k] for k in ("ece", "ece_low", "ece_high", "brier", "brier_low", "brier_high")}),
        ]  # fmt: skip
        noise = [{**row, "ranks": [int(r) + 1 for r in world.random.permutation(4)]} for row in rows[:shuffled_count]]
        config |= {"held_out": 0.5}
        made = carry_out(
            store,
            "reward",
            Reward(**config),
            {"model": {"m": start}, "rankings": {"r": artifact(store, "Ranking", noise)}},
        )
        found = made.manifest["summary"]
        claims.append(
            claim("reward_shuffled_labels", found["accuracy"], "interval includes .5, and is within .02 of it",
                  found["accuracy_low"] <= 0.5 <= found["accuracy_high"] and abs(found["accuracy"] - 0.5) <= 0.02,
                  interval=[found["accuracy_low"], found["accuracy_high"]], brier=found["brier"])
        )  # fmt: skip
    return claims


# -- 2. annotators -----------------------------------------------------------------------------------------------------


def linear(features_LID: Floats, ranks_LI: NDArray[np.int64], weight_L: Floats) -> Floats:
    """A linear reward by the `reward` stage's own loss (Plackett-Luce, weighted), at its optimum."""
    import torch

    from training.reward import list_loss

    x = torch.tensor(features_LID)
    ranks, weight = torch.tensor(ranks_LI), torch.tensor(weight_L)
    w_D = torch.zeros(x.shape[2], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w_D], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (weight * list_loss.nll((x @ w_D)[..., None], ranks)[:, 0]).sum() / weight.sum()
        loss = loss + 1e-3 * w_D.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return w_D.detach().numpy()


def annotators(quick: bool) -> list[Claim]:
    """Ten annotators, three of whom rank at random; three of the ten see each prompt."""
    import torch

    from training.reward.rankings import reliability_in

    torch.set_num_threads(1)
    prompts, seeds = 120, 3 if quick else 12
    costs: list[tuple[float, float]] = []
    weights: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"{folder}/store")
        for seed in range(seeds):
            world = World(100 + seed)
            rows: list[Any] = []
            features: list[Floats] = []
            clean: list[list[int]] = []
            for prompt in range(prompts):
                answers = [world.answer() for _ in range(4)]
                x = np.stack([np.bincount(answer, minlength=len(world.worth)) for answer in answers]).astype(np.float64)
                for annotator in world.random.choice(10, 3, replace=False).tolist():
                    honest = world.rank(answers)
                    given = world.rank(answers, at_random=True) if annotator < 3 else honest
                    rows.append(world.row(f"{prompt}-{annotator}", prompt, answers, given, f"a{annotator}"))
                    features.append(x)
                    clean.append(honest)
            judged = carry_out(
                store,
                "preferences",
                load("preferences").model_validate({}),
                {"rankings": {"r": artifact(store, "Ranking", rows)}},
            )
            reliability = reliability_in([judged])
            weight_L = np.array([reliability[row["annotator"]] for row in rows])
            x_LID, ranks_LI = np.stack(features), np.array([row["ranks"] for row in rows])
            ones = np.ones(len(rows))
            d = np.stack(
                [
                    np.bincount(world.answer(), minlength=24) - np.bincount(world.answer(), minlength=24)
                    for _ in range(4000)
                ]
            )
            p = 1 / (1 + np.exp(-d @ world.worth))

            def accuracy(w_D: Floats, d: Any = d, p: Floats = p) -> float:
                return float(np.where(d @ w_D > 0, p, 1 - p).mean())

            best = accuracy(linear(x_LID, np.array(clean), ones))
            costs.append(
                (best - accuracy(linear(x_LID, ranks_LI, ones)), best - accuracy(linear(x_LID, ranks_LI, weight_L)))
            )
            weights.append(
                (
                    float(np.mean([reliability[f"a{i}"] for i in range(3)])),
                    float(np.mean([reliability[f"a{i}"] for i in range(3, 10)])),
                )
            )
    without, with_weights = np.array(costs).T
    ratio = bootstrap.statistic(
        [str(i) for i in range(seeds)], lambda i: float(with_weights[i].mean() / without[i].mean()), "annotators"
    )
    return [
        claim("reward_random_annotators", round(ratio.value, 4), "cost with weights < .5 of the cost without", ratio.value < 0.5,
              interval=[round(ratio.low, 4), round(ratio.high, 4)], accuracy_lost_without=round(float(without.mean()), 5),
              accuracy_lost_with=round(float(with_weights.mean()), 5), rankings=3 * prompts, seeds=seeds,
              mean_weight_of_random=round(float(np.mean(weights, 0)[0]), 4), mean_weight_of_honest=round(float(np.mean(weights, 0)[1]), 4),
              note="linear reward at the optimum of the stage's loss; reliabilities from the `preferences` stage")
    ]  # fmt: skip


# -- 3. over-optimisation ----------------------------------------------------------------------------------------------


def overoptimisation(quick: bool) -> list[Claim]:
    """Gold is linear in 8 features of an answer. Reward models also see 64 rare features of heavy tails (Student-t with 2
    degrees of freedom, on in 2 % of answers) that are worth nothing, which a few hundred labels can't rule out: where
    one is extreme, so is the error. Policies are the exact optima pi ~ pi_ref exp(t r) over 512 answers to each of 48
    prompts, so that nothing but the reward model can go wrong."""
    seeds = 4 if quick else 12
    grid = np.concatenate([[0.0], np.geomspace(0.1, 30, 30)])
    turned: list[float] = []
    kept: list[float] = []
    by_limit: dict[float, list[float]] = {2.0: [], 4.0: [], 8.0: []}
    example: dict[str, Any] = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        gold_XN, single_XN, heads_XNH = misspecified(rng)
        alone = sharpen(rng, single_XN, gold_XN, heads_XNH, grid)
        pessimistic = heads_XNH.mean(2) - heads_XNH.std(2)
        together = sharpen(rng, pessimistic, gold_XN, heads_XNH, grid)
        best = max(float(alone[0].max()), float(together[0].max()))
        turned.append(float(alone[0][-1] / alone[0].max()))
        guard = Guard(GuardConfig(patience=3))
        for point in together[1]:
            guard.add(point)
            if guard.stop():
                break
        kept.append(float(together[0][guard.best().step] / best))
        for limit, found in by_limit.items():
            blind = Guard(GuardConfig(max_disagreement=limit))
            for point in together[1]:
                blind.add(Point(point.step, point.kl, point.proxy, point.disagreement))
                if blind.stop():
                    break
            found.append(float(together[0][blind.best().step] / best))
        if seed == 0:
            for name, (gold, points) in (("single", alone), ("ensemble", together)):
                example[name] = [
                    {"sqrt_kl": round(p.distance, 3), "proxy": round(p.proxy, 3), "gold": round(float(g), 4)}
                    for p, g in zip(points, gold, strict=True)
                ][::3]
    names = [str(i) for i in range(seeds)]
    end, share = bootstrap.mean(turned, names), bootstrap.mean(kept, names)
    return [
        claim("overoptimisation_single_turns_over", round(end.value, 4), "gold at the end / at its peak: interval below .95",
              end.high < 0.95, interval=[round(end.low, 4), round(end.high, 4)], seeds=seeds, curves_of_seed_0=example),
        claim("overoptimisation_ensemble_with_guard", round(share.value, 4), ">= .95 of the best gold seen, mean of all seeds",
              share.value >= 0.95, interval=[round(share.low, 4), round(share.high, 4)], worst=round(min(kept), 4),
              held_out_answers_a_policy=48 * 8,
              stopped_by_disagreement_alone={f"{k:g}x": round(float(np.mean(v)), 4) for k, v in by_limit.items()}),
    ]  # fmt: skip


def misspecified(rng: np.random.Generator, heads: int = 8, labels: int = 300) -> tuple[Floats, Floats, Floats]:
    """Gold scores of answers_XN, what one reward model gives them, and what each head of an ensemble does."""
    prompts, answers, size, rare = 48, 512, 8, 64
    x = rng.normal(size=(prompts, answers, size))
    tail = 6 * rng.standard_t(2, size=(prompts, answers, rare)) * (rng.random((prompts, answers, rare)) < 0.02)
    worth = rng.normal(size=size)
    gold_XN = x @ (worth / np.linalg.norm(worth))
    features = np.concatenate([x, tail], axis=2)
    prompt, (i, j) = rng.integers(0, prompts, labels), rng.integers(0, answers, (2, labels))
    first = rng.random(labels) < 1 / (1 + np.exp(-1.5 * (gold_XN[prompt, i] - gold_XN[prompt, j])))
    difference = np.where(first[:, None], 1, -1) * (features[prompt, i] - features[prompt, j])

    def fit(weight_P: Floats) -> Floats:
        """Bradley-Terry with a unit normal prior, by Newton's method."""
        w = np.zeros(size + rare)
        for _ in range(15):
            p = np.exp(-np.logaddexp(0, -difference @ w))
            gradient = difference.T @ (weight_P * (1 - p)) - w
            hessian = (difference.T * (weight_P * p * (1 - p))) @ difference + np.eye(len(w))
            w = w + np.linalg.solve(hessian, gradient)
        return w

    ensemble = np.stack([fit(rng.poisson(1.0, labels).astype(np.float64)) for _ in range(heads)], axis=1)
    return gold_XN, features @ fit(np.ones(labels)), features @ ensemble


def sharpen(
    rng: np.random.Generator, proxy_XN: Floats, gold_XN: Floats, heads_XNH: Floats, grid: Floats
) -> tuple[Floats, list[Point]]:
    """The exact gold score of each policy on the way, and what a run would have measured of it with 8 answers a prompt."""
    exact: list[float] = []
    points: list[Point] = []
    spread_XN = heads_XNH.std(2)
    for step, t in enumerate(grid):
        logit = t * proxy_XN
        p_XN = np.exp(logit - logit.max(1, keepdims=True))
        p_XN /= p_XN.sum(1, keepdims=True)
        kl = float((p_XN * np.log(p_XN * p_XN.shape[1] + 1e-300)).sum(1).mean())
        exact.append(float((p_XN * gold_XN).sum(1).mean()))
        drawn = np.array([rng.choice(p_XN.shape[1], 8, p=p) for p in p_XN])
        names = [str(x) for x in range(len(drawn)) for _ in range(8)]
        gold, error = held_out(np.take_along_axis(gold_XN, drawn, 1).ravel(), names)
        proxy, spread = (float(np.take_along_axis(of_XN, drawn, 1).mean()) for of_XN in (proxy_XN, spread_XN))
        points.append(Point(step, kl, proxy, spread, gold, error))
    return np.array(exact), points


# -- 6. GSM8K ----------------------------------------------------------------------------------------------------------


def gsm8k(quick: bool) -> list[Claim]:
    rows = [json.loads(text) for text in (DATA / "gsm8k" / "train.jsonl").read_text().splitlines()]
    right = formats = wrong = asked = solved = 0
    for row in rows:
        written = row["answer"].split("####")[1].strip()
        value = Fraction(written.replace(",", ""))
        right += numbers.final(row["answer"]) == value
        solved += equality.is_right(row["answer"], row["answer"])
        said = [
            f"The answer is {value}.",
            f"So it costs ${float(value):,.2f} in all.",
            f"\\boxed{{{value}}}",
            f"That is {value}%.",
            f"= {value * 7}/7",
            f"#### {written}\nI checked 100 times",
            f"\\boxed{{\\frac{{{abs(value) * 3}}}{{3}}}}" if value >= 0 else f"It is {value}",
            f"-> ${written}",
        ]
        formats += sum(numbers.agrees(text, row["answer"]) for text in said)
        asked += len(said)
        for text in (f"The answer is {value + 1}.", "I don't know."):
            wrong += numbers.agrees(text, row["answer"]) or equality.is_right(text, row["answer"])
    return [
        claim("gsm8k_final_answers", right, f"all {len(rows)} rows", right == solved == len(rows) >= 7473, mathematics=solved),
        claim("gsm8k_number_formats", round(formats / asked, 6), "all of $, commas, percent, fractions, boxed; no wrong one",
              formats == asked and not wrong, asked=asked, wrong_accepted=int(wrong)),
    ]  # fmt: skip


# -- 7. bad input ------------------------------------------------------------------------------------------------------


def bad_input(quick: bool) -> list[Claim]:
    """Each line of what can't be learnt from, and what was said about it."""
    import polars as pl
    import torch

    from generators.rules.verify import measure as measure_rule
    from training.reward.model import RewardModel
    from training.reward.reward_stage import Reward
    from training.rl.rollouts import Question, Rollout
    from training.rl.scoring import Scorer, same_tokenizer

    torch.set_num_threads(1)
    said: dict[str, str] = {}
    tokenizer = words(24)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"{folder}/store")
        start = model(store, Path(folder) / "start", tokenizer, 32, 1, 32)

        def attempt(name: str, kind: str, rows: list[dict[str, Any]], **config: Any) -> None:
            heard: list[str] = []
            port = "preferences" if kind == "Preference" else "rankings"
            inputs = {"model": {"m": start}, port: {"r": artifact(store, kind, rows)}}
            try:
                carry_out(store, "reward", Reward(seed=0, checkpoint_every=10**6, **config), inputs,
                          emit=lambda event: heard.append(str(event.get("text", ""))))  # fmt: skip
                said[name] = " ".join(heard)
            except UserError as error:
                said[name] = str(error)

        def pair(i: int, chosen: str, rejected: str, margin: float = 0.0) -> dict[str, Any]:
            return {
                "id": f"{i}", "prompt_id": f"p{i}", "prompt": user("w1"), "chosen": assistant(chosen),
                "rejected": assistant(rejected), "margin": margin, "split": "train" if i % 2 else "validation",
            }  # fmt: skip

        attempt("margin is NaN", "Preference", [pair(0, "w1", "w2"), pair(1, "w1", "w2", math.nan)])
        attempt("margin is infinite", "Preference", [pair(0, "w1", "w2"), pair(1, "w1", "w2", math.inf)])
        attempt("all answers equal", "Preference", [pair(i, "w1", "w1") for i in range(4)])
        contradiction = [
            pair(2 * i + k, *(("w1", "w2") if i % 2 else ("w2", "w1"))) for i in range(8) for k in range(2)
        ]
        attempt("constant reward", "Preference", contradiction, lr=1e-12)
        one = {**World(0).row("r", 0, [np.array([1]), np.array([2])], [1, 2], "ada"), "ranks": [1, None]}
        attempt("one ranked answer", "Ranking", [one])

        def tried(name: str, work: Callable[[], Any]) -> None:
            try:
                said[name] = f"no error: {work()}"
            except UserError as error:
                said[name] = str(error)

        frame = pl.DataFrame(
            {"completion": ["a"], "reference": ["a"], "prompt": ["?"], "length": [0], "finish_reason": ["stop"]}
        )
        tried("rule gives NaN", lambda: measure_rule("0.0 / CAST(length AS FLOAT)", frame, "r"))
        tried("gold is NaN", lambda: Guard().add(Point(1, 0.0, 0.0, None, math.nan)))
        from transformers import AutoModelForSequenceClassification

        broken = AutoModelForSequenceClassification.from_pretrained(
            start.location, num_labels=1, trust_remote_code=False
        )
        reward = RewardModel(broken, tokenizer, torch.zeros(1), 1.0)
        empty = Rollout(Question("q", user("w1"), None, [5]), [], "", "stop")
        score = float(Scorer(reward, {}, {}).score([empty])[0][0])
        said["empty rollout"] = f"scored {score:.3f} as an answer that ends at once" if math.isfinite(score) else ""
        broken.score.weight.data.fill_(math.nan)
        tried("reward is NaN", lambda: Scorer(reward, {}, {}).score([empty]))
        said["another tokenizer"] = (
            "told apart: texts are tokenised anew" if not same_tokenizer(tokenizer, words(12)) else ""
        )
    expected = {
        "margin is NaN": "`margin` is nan, expected a finite number", "margin is infinite": "`margin` is inf, expected a finite",
        "all answers equal": "equal answers", "constant reward": "The reward is constant", "one ranked answer": "none of the 1 rankings",
        "rule gives NaN": "is NaN or infinite for 1 of 1", "gold is NaN": "`gold` is nan", "empty rollout": "ends at once",
        "reward is NaN": "a score that is NaN or infinite", "another tokenizer": "tokenised anew",
    }  # fmt: skip
    missed = {name: said.get(name, "") for name, part in expected.items() if part not in said.get(name, "")}
    return [
        claim(
            "bad_input",
            len(expected) - len(missed),
            f"all {len(expected)} said clearly",
            not missed,
            missed=missed,
            said=said,
        )
    ]


# -- all of it ---------------------------------------------------------------------------------------------------------

PARTS: dict[str, tuple[Callable[[bool], list[Claim]], str | None, list[str]]] = {
    "rankings": (rankings, None, []),
    "annotators": (annotators, None, []),
    "optimisation": (overoptimisation, None, []),
    "alpaca": (alpaca, "alpaca_eval", ["alpaca_reward_stage", "alpaca_reward_ngrams"]),
    "length": (length, "alpaca_eval", ["length_controlled_follows_raw", "length_controlled_differs_where_length_does",
                                       "length_controlled_as_published"]),
    "gsm8k": (gsm8k, "gsm8k", ["gsm8k_final_answers", "gsm8k_number_formats"]),
    "input": (bad_input, None, []),
}  # fmt: skip


def claims(quick: bool, only: Sequence[str] | None = None) -> list[Claim]:
    """Every line of proof, each with the CPU seconds of its part; a line whose data are not there holds nothing."""
    found: list[Claim] = []
    for name, (work, needs, ids) in PARTS.items():
        if only and name not in only:
            continue
        if needs and not (DATA / needs).is_dir():
            found += [
                claim(id, None, "measured", False, why=f"there is no folder {needs} in $FLYWHEEL_DATA") for id in ids
            ]
            continue
        started = time.process_time()
        own = work(quick)
        seconds = round(time.process_time() - started, 1)
        found += [{**one, "part_cpu_s": seconds} for one in own]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--quick", action="store_true", help="smaller, for development")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=None)
    given = parser.parse_args()
    found = claims(given.quick, given.only)
    if given.json:
        machine = {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "numpy": np.__version__,
        }
        print(json.dumps({"benchmark": "rewards", "quick": given.quick, **machine, "claims": found}))
        return
    for one in found:
        print(f"{'holds' if one['holds'] else 'FAILS':6} {one['id']}: {one['value']} (bar: {one['bar']})")


if __name__ == "__main__":
    main()
