"""`ask`: which prompts and answers to show people next.

What a judgement of a pair is expected to teach is the mutual information between its outcome and the utilities
(Houlsby, Huszar, Ghahramani and Lengyel 2011, "Bayesian active learning for classification and preference learning",
eq. 2): high where the model is unsure *and* the annotator would not be. The uncertainty is the disagreement of a reward
ensemble, or the posterior of the ranking model. Pairs are picked one after another, each pick shrinking the
uncertainty it is expected to settle, so that a batch does not ask one thing twice.

That this beats asking at random is contested (arXiv 2604.02766), so a share is always picked at random, and marked:
only that share measures the model honestly. `docs/preferences.md` has what was measured.

Legend: P pairs, E members of an ensemble, Q dimensions of the uncertainty.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine import seeds
from engine.errors import UserError
from engine.stage.job import Job, part_name
from engine.stage.stage import Stage, port
from labeling.preferences.ballots import Gold, count_votes, number, read_ballots
from labeling.utilities import reliability
from labeling.utilities.bradley_terry import Floats, Ints

# The expectation over a standard normal; an even number of nodes, so that none sits on the peak of the entropy.
_NODES, _MASSES = np.polynomial.hermite_e.hermegauss(40)
_WEIGHTS = _MASSES / _MASSES.sum()

By = Literal["information", "max_min", "random", "disputed"]


def information(mean_P: Floats, sd_P: Floats) -> Floats:
    """Expected information of one judgement in nats, when the log-odds of a pair are normal; in [0, log 2]."""
    p_PN = _sigmoid(mean_P[:, None] + sd_P[:, None] * _NODES)
    return np.clip(_entropy(p_PN @ _WEIGHTS) - _entropy(p_PN) @ _WEIGHTS, 0, None)


def disagreement(difference_EP: Floats) -> Floats:
    """Expected information in nats, when each member of an ensemble has log-odds of its own (equal weights)."""
    p_EP = _sigmoid(difference_EP)
    return np.clip(_entropy(p_EP.mean(axis=0)) - _entropy(p_EP).mean(axis=0), 0, None)


@dataclass(frozen=True)
class Pick:
    """A pair to show, why it was picked, and the information expected of it at that moment (nats)."""

    pair: int
    why: Literal["information", "random"]
    expected: float


def choose(
    mean_P: Floats,
    factor_PQ: Floats,
    count: int,
    *,
    group_P: Ints | None = None,
    random_share: float = 0.0,
    seed: Sequence[str | int] = (),
) -> list[Pick]:
    """Pick pairs by expected information, one after another.

    Args:
        mean_P: log-odds that the first of the pair is preferred.
        factor_PQ: their uncertainty: the log-odds are `mean + factor @ xi` with `xi` standard normal. From a posterior
            covariance `C = L L'` over parameters, `design @ L`; from E members, their deviations over sqrt(E - 1).
        count: how many pairs.
        group_P: the prompt of each pair; at most one pair of each is picked.
        random_share: of the picks, drawn evenly from all pairs before any is picked for information.
        seed: parts of the seed of that draw.
    """
    group_P = np.arange(len(mean_P)) if group_P is None else group_P
    groups = np.unique(group_P)
    count = min(count, len(groups))
    asked: set[int] = set()
    picks: list[Pick] = []
    left_QQ = np.eye(factor_PQ.shape[1])  # covariance of xi, as picks shrink it

    def variance(pair: int) -> float:
        return max(float(factor_PQ[pair] @ left_QQ @ factor_PQ[pair]), 0.0)

    def expected(pair: int) -> float:
        return float(information(mean_P[[pair]], np.sqrt([variance(pair)]))[0])

    def take(pair: int, why: Literal["information", "random"], value: float) -> None:
        nonlocal left_QQ
        asked.add(int(group_P[pair]))
        before = variance(pair)
        p_N = _sigmoid(mean_P[pair] + np.sqrt(before) * _NODES)
        curvature = float((p_N * (1 - p_N)) @ _WEIGHTS)
        along_Q = left_QQ @ factor_PQ[pair]
        left_QQ = left_QQ - curvature / (1 + curvature * before) * np.outer(along_Q, along_Q)
        picks.append(Pick(pair, why, value))

    rng = seeds.generator("ask", *seed)
    for group in rng.permutation(groups)[: round(random_share * count)]:
        pair = int(rng.choice(np.flatnonzero(group_P == group)))
        take(pair, "random", expected(pair))
    # A pick only ever lowers what the others are expected to teach, so a value from before is a bound from above: look
    # again at the highest alone until it is fresh (Minoux 1978, lazy greedy).
    first_P = information(mean_P, np.linalg.norm(factor_PQ @ np.linalg.cholesky(left_QQ), axis=1))
    queue = [(-value, pair, len(picks)) for pair, value in enumerate(first_P.tolist())]
    heapq.heapify(queue)
    while len(picks) < count:
        value, pair, known_at = heapq.heappop(queue)
        if int(group_P[pair]) in asked:
            continue
        if known_at == len(picks):
            take(pair, "information", -value)
        else:
            heapq.heappush(queue, (-expected(pair), pair, len(picks)))
    return picks


def max_min(utility_BK: Floats) -> Ints:
    """For each prompt, the answers thought best and worst, (B, 2): the baseline of ActiveUltraFeedback."""
    return np.stack([np.argmax(utility_BK, axis=1), np.argmin(utility_BK, axis=1)], axis=1)


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -x))


def _entropy(p: Floats) -> Floats:
    q = np.clip(p, 1e-300, 1.0)
    r = np.clip(1 - p, 1e-300, 1.0)
    return -(q * np.log(q) + r * np.log(r))


class Ask(Stage):
    """Pick the prompts, and the answers to each, that people should rank next.

    With `verdicts` of two or more models (a reward ensemble), the uncertainty is their disagreement; with `rankings`,
    what the ranking model does not know yet, so that prompts nobody has seen come first, then the least settled ones.
    `by: disputed` picks the prompts on which annotators contradict each other, with all their answers: an adjudication set,
    to be labelled by someone else and given to `preferences` as `adjudications`.
    Kept rows carry the column `asked`, which says how they were picked. The others are rejected as `not_asked`.
    """

    takes = {
        "candidates": port("Candidate", many=True),
        "verdicts": port("Verdict", many=True, optional=True),
        "rankings": port("Ranking", many=True, optional=True),
    }
    gives = "Candidate"
    phase = "people"
    random = True

    prompts: int = Field(ge=1, description="How many prompts to ask about.")
    answers: int = Field(2, ge=2, description="How many answers to show of each.")
    by: By = Field("information", description="How to pick.")
    random_share: float = Field(0.2, ge=0, le=1, description="Share of the prompts picked at random, for evaluation.")
    metric: str = Field("reward", description="The verdicts' metric that is a utility in log-odds.")

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return min(self.prompts * self.answers, rows.get("candidates", 0))

    def run(self, job: Job) -> None:
        table = pa.concat_tables([a.to_table() for a in job.all("candidates")], promote_options="default")
        by_prompt: dict[str, dict[str, int]] = {}
        texts: list[str] = [row[-1]["content"] for row in table.column("completion").to_pylist()]
        ids: list[str] = table.column("id").to_pylist()
        for row, prompt_id in enumerate(table.column("prompt_id").to_pylist()):
            first = by_prompt.setdefault(prompt_id, {}).setdefault(texts[row], row)
            if ids[row] < ids[first]:
                by_prompt[prompt_id][texts[row]] = row
        # Different answers only, in the order of their ids: the result must not depend on the order of the rows.
        answers = {p: sorted(rows.values(), key=lambda r: ids[r]) for p, rows in sorted(by_prompt.items())}
        answers = {p: rows for p, rows in answers.items() if len(rows) > 1}
        if not answers:
            raise UserError("no prompt has two different answers: there is nothing to ask. Sample more, or hotter.")
        asked = self._pick(job, answers, ids, texts)
        keep = sorted(asked)
        gone = [row for row in range(len(ids)) if row not in asked]
        why = pa.array([asked[row] for row in keep], pa.string())
        kept = table.take(keep).append_column("asked", why)
        left = table.take(gone).append_column("reason", pa.array(["not_asked"] * len(gone), pa.string()))
        picked = [asked[row] for row in keep]
        job.summary(
            prompts=len(set(table.take(keep).column("prompt_id").to_pylist())),
            asked={name: picked.count(name) for name in sorted(set(picked))},
        )
        job.commit(part_name(0, ids), kept, left, consumed=len(ids))

    def _pick(self, job: Job, answers: dict[str, list[int]], ids: list[str], texts: list[str]) -> dict[int, str]:
        """Row -> why it is asked about."""
        if self.by == "disputed":
            return self._disputed(job, answers, texts)
        prompts = list(answers)
        count = min(self.prompts, len(prompts))
        at_random = count if self.by == "random" else round(self.random_share * count)
        picked: dict[int, str] = {}
        for prompt_id in seeds.shuffled(prompts, job.seed, "ask", "random")[:at_random]:
            for row in seeds.shuffled(answers[prompt_id], job.seed, "ask", "answers", prompt_id)[: self.answers]:
                picked[row] = "random"
        if at_random == count:
            return picked
        drawn = {prompt_id for prompt_id, rows in answers.items() if picked.keys() & set(rows)}
        rest = {prompt_id: rows for prompt_id, rows in answers.items() if prompt_id not in drawn}
        score = self._scores(job, rest, ids, texts)
        if self.by == "max_min":
            for prompt_id in seeds.shuffled(list(rest), job.seed, "ask", "max_min")[: count - at_random]:
                rows = rest[prompt_id]
                order = np.argsort([-float(score.mean[row]) for row in rows], kind="stable")
                # from both ends inwards
                ends = [order[k // 2] if k % 2 == 0 else order[-1 - k // 2] for k in range(len(rows))]
                picked.update({rows[int(k)]: "max_min" for k in ends[: self.answers]})
            return picked
        pairs = [(p, a, b) for p, rows in rest.items() for a, b in combinations(rows, 2)]
        number = {prompt_id: g for g, prompt_id in enumerate(rest)}
        mean_P = np.array([score.mean[a] - score.mean[b] for _, a, b in pairs])
        factor_PQ = np.stack([score.factor[a] - score.factor[b] for _, a, b in pairs])
        group_P = np.array([number[p] for p, _, _ in pairs], np.int64)
        own_P = None if score.own is None else np.array([score.own[a, b] for _, a, b in pairs])
        if own_P is not None:  # the prompts' posteriors do not touch each other: the best pair of each, best first
            expected = information(mean_P, own_P)
            order = np.argsort(-expected, kind="stable")
            _, first = np.unique(group_P[order], return_index=True)
            chosen = order[np.sort(first)][: count - at_random].tolist()
        else:
            found = choose(mean_P, factor_PQ, count - at_random, group_P=group_P)
            chosen = [pick.pair for pick in found]
        for k in chosen:
            prompt_id, a, b = pairs[k]
            rows = [a, b]
            while len(rows) < min(self.answers, len(rest[prompt_id])):
                rows.append(max((r for r in rest[prompt_id] if r not in rows), key=lambda r: score.with_all(r, rows)))
            picked.update(dict.fromkeys(rows, "information"))
        return picked

    def _disputed(self, job: Job, answers: dict[str, list[int]], texts: list[str]) -> dict[int, str]:
        """The answers that were ranked, of the prompts with the largest share of contradicted votes."""
        if not job.inputs.get("rankings"):
            raise UserError("`by: disputed` needs the `rankings` that may contradict each other.")
        ballots, _ = read_ballots(job.all("rankings"))
        votes = count_votes([ballot for ballot in ballots if ballot.planted is None])
        worst = [p for p, share in votes.disputes().items() if p in answers and share > 0][: self.prompts]
        ranked = {(b.prompt_id, text) for b in ballots for text in b.candidates if text != b.planted}
        return {row: "disputed" for p in worst for row in answers[p] if (p, texts[row]) in ranked}

    def _scores(self, job: Job, answers: dict[str, list[int]], ids: list[str], texts: list[str]) -> _Scores:
        """What is known of every answer.

        Raises:
            UserError: nothing is, or verdicts are missing.
        """
        rows = [row for group in answers.values() for row in group]
        if job.inputs.get("verdicts"):
            values: dict[str, dict[str, float]] = {}
            for artifact in job.all("verdicts"):
                for verdict in artifact.to_table(["subject", "model", "metric", "value"]).to_pylist():
                    if verdict["metric"] == self.metric:
                        values.setdefault(verdict["model"] or "", {})[verdict["subject"]] = verdict["value"]
            if not values or (self.by == "information" and len(values) < 2):
                raise UserError(
                    f"the verdicts hold the metric `{self.metric}` from {len(values)} models; expected information needs "
                    "two or more (a reward ensemble). Name the right `metric`, add members, or use `by: max_min`."
                )
            missing = [ids[row] for row in rows if any(ids[row] not in of for of in values.values())]
            if missing:
                raise UserError(
                    f"{len(missing)} candidates have no verdict `{self.metric}` from every model, {missing[0]} among them."
                )
            value_ER = np.array([[of[ids[row]] for row in rows] for _, of in sorted(values.items())])
            deviation = (value_ER - value_ER.mean(axis=0)) / np.sqrt(max(len(values) - 1, 1))
            mean = dict(zip(rows, value_ER.mean(axis=0).tolist(), strict=True))
            return _Scores(mean, dict(zip(rows, list(deviation.T), strict=True)), None)
        if job.inputs.get("rankings"):
            return self._from_rankings(job, answers, texts)
        raise UserError(
            f"`by: {self.by}` needs `verdicts` of a reward ensemble, or `rankings` so far. Give one of them."
        )

    def _from_rankings(self, job: Job, answers: dict[str, list[int]], texts: list[str]) -> _Scores:
        ballots = [ballot for ballot in read_ballots(job.all("rankings"))[0] if ballot.planted is None]
        if not ballots:
            raise UserError("none of the rankings can be used: there is nothing to learn from yet. Use `by: random`.")
        judgements, index = number(ballots, Gold({}))
        fit = reliability.fit(judgements)
        mean: dict[int, float] = {}
        sd: dict[tuple[int, int], float] = {}
        for prompt_id, rows in answers.items():
            item = {row: index.item.get((prompt_id, texts[row])) for row in rows}
            mean |= {row: 0.0 if i is None else float(fit.utility_I[i]) for row, i in item.items()}
            for a, b in combinations(rows, 2):
                i, j = item[a], item[b]
                # An answer no one has ranked is as uncertain as any answer is.
                known = fit.difference(i, j)[1] if i is not None and j is not None else fit.spread * np.sqrt(2)
                sd[a, b] = sd[b, a] = float(known)
        return _Scores(mean, {row: np.zeros(1) for row in mean}, sd)


@dataclass(frozen=True)
class _Scores:
    """By row: the mean utility, and its uncertainty either as a factor shared by all, or per pair of a prompt."""

    mean: dict[int, float]
    factor: dict[int, Floats]
    own: dict[tuple[int, int], float] | None

    def with_all(self, row: int, others: Sequence[int]) -> float:
        """Expected information of this answer against each of the others, summed."""
        means = np.array([self.mean[row] - self.mean[other] for other in others])
        if self.own is not None:
            sds = np.array([self.own[row, other] for other in others])
        else:
            sds = np.array([float(np.linalg.norm(self.factor[row] - self.factor[other])) for other in others])
        return float(information(means, sds).sum())
