"""The work of `ask`: candidates in, those to show people out, each with the way it was picked.

That asking for information beats asking at random is contested (arXiv 2604.02766), so a share is always picked at
random, and marked: only that share measures the model honestly. `docs/preferences.md` has what was measured.

Legend: P pairs, Q dimensions of the uncertainty, E members of an ensemble, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa

from engine import seeds
from engine.errors import UserError
from engine.stage.job import Job, part_name
from labeling.ask.information import choose, information
from labeling.ask.stage import Ask
from labeling.preferences.ballots import Gold, count_votes, read_ballots, to_judgements
from labeling.utilities import reliability
from labeling.utilities.bradley_terry import Floats


@dataclass(frozen=True)
class AnswerPool:
    """All candidates, and the prompts that have something to compare.

    Attributes:
        ids, texts: of the table's rows.
        answers: prompt id -> rows of its different answers, two or more, in the order of their ids.
    """

    table: pa.Table
    ids: list[str]
    texts: list[str]
    answers: dict[str, list[int]]

    def without(self, rows: set[int]) -> AnswerPool:
        """The prompts that have none of these rows."""
        left = {prompt_id: own for prompt_id, own in self.answers.items() if not rows & set(own)}
        return AnswerPool(self.table, self.ids, self.texts, left)


@dataclass(frozen=True)
class AnswerUtilities:
    """By row: the mean utility, and its uncertainty either as a factor shared by all, or per pair of a prompt."""

    mean: dict[int, float]
    factor: dict[int, Floats]
    own: dict[tuple[int, int], float] | None

    def information(self, row: int, others: Sequence[int]) -> float:
        """Expected information of this answer against each of the others, summed."""
        means = np.array([self.mean[row] - self.mean[other] for other in others])
        if self.own is not None:
            sds = np.array([self.own[row, other] for other in others])
        else:
            sds = np.array([float(np.linalg.norm(self.factor[row] - self.factor[other])) for other in others])
        return float(information(means, sds).sum())


def pick(stage: Ask, job: Job) -> None:
    pool = _read_candidates(job)
    ways = _disputed(stage, job, pool) if stage.by == "disputed" else _pick_rows(stage, job, pool)
    rows = sorted(ways)
    others = [row for row in range(len(pool.ids)) if row not in ways]
    asked = [ways[row] for row in rows]
    picked = pool.table.take(rows).append_column("asked", pa.array(asked, pa.string()))
    left = pool.table.take(others).append_column("reason", pa.array(["not_asked"] * len(others), pa.string()))
    job.summary(
        prompts=len(set(picked.column("prompt_id").to_pylist())),
        asked={way: asked.count(way) for way in sorted(set(asked))},
    )
    job.commit(part_name(0, pool.ids), picked, left, consumed=len(pool.ids))


def _read_candidates(job: Job) -> AnswerPool:
    """
    Raises:
        UserError: no prompt has two different answers.
    """
    table = pa.concat_tables([a.to_table() for a in job.all("candidates")], promote_options="default")
    texts: list[str] = [row[-1]["content"] for row in table.column("completion").to_pylist()]
    ids: list[str] = table.column("id").to_pylist()
    by_text: dict[str, dict[str, int]] = {}
    for row, prompt_id in enumerate(table.column("prompt_id").to_pylist()):
        first = by_text.setdefault(prompt_id, {}).setdefault(texts[row], row)
        if ids[row] < ids[first]:
            by_text[prompt_id][texts[row]] = row
    # In the order of their ids: the result must not depend on the order of the rows.
    answers = {p: sorted(rows.values(), key=lambda r: ids[r]) for p, rows in sorted(by_text.items()) if len(rows) > 1}
    if not answers:
        raise UserError("no prompt has two different answers: there is nothing to ask. Sample more, or hotter.")
    return AnswerPool(table, ids, texts, answers)


def _pick_rows(stage: Ask, job: Job, pool: AnswerPool) -> dict[int, str]:
    """Row -> why it is asked about."""
    prompts = list(pool.answers)
    count = min(stage.prompts, len(prompts))
    at_random = count if stage.by == "random" else round(stage.random_share * count)
    ways: dict[int, str] = {}
    for prompt_id in seeds.shuffled(prompts, job.seed, "ask", "random")[:at_random]:
        for row in seeds.shuffled(pool.answers[prompt_id], job.seed, "ask", "answers", prompt_id)[: stage.answers]:
            ways[row] = "random"
    if at_random == count:
        return ways
    rest = pool.without(set(ways))
    utilities = _utilities(stage, job, rest)
    if stage.by == "max_min":
        for prompt_id in seeds.shuffled(list(rest.answers), job.seed, "ask", "max_min")[: count - at_random]:
            rows = sorted(rest.answers[prompt_id], key=lambda row: -utilities.mean[row])
            from_both_ends = [rows[k // 2] if k % 2 == 0 else rows[-1 - k // 2] for k in range(len(rows))]
            ways |= dict.fromkeys(from_both_ends[: stage.answers], "max_min")
        return ways
    for prompt_id, a, b in _informative_pairs(rest, utilities, count - at_random):
        rows = [a, b]
        while len(rows) < min(stage.answers, len(rest.answers[prompt_id])):
            others = (row for row in rest.answers[prompt_id] if row not in rows)
            rows.append(max(others, key=lambda row: utilities.information(row, rows)))
        ways |= dict.fromkeys(rows, "information")
    return ways


def _informative_pairs(pool: AnswerPool, utilities: AnswerUtilities, count: int) -> list[tuple[str, int, int]]:
    """This many (prompt id, row, row), one pair of a prompt."""
    pairs = [(p, a, b) for p, rows in pool.answers.items() for a, b in combinations(rows, 2)]
    place = {prompt_id: g for g, prompt_id in enumerate(pool.answers)}
    mean_P = np.array([utilities.mean[a] - utilities.mean[b] for _, a, b in pairs])
    group_P = np.array([place[p] for p, _, _ in pairs], np.int64)
    if utilities.own is not None:  # the prompts' posteriors do not touch each other: the best pair of each, best first
        sd_P = np.array([utilities.own[a, b] for _, a, b in pairs])
        order = np.argsort(-information(mean_P, sd_P), kind="stable")
        _, first = np.unique(group_P[order], return_index=True)
        return [pairs[k] for k in order[np.sort(first)][:count].tolist()]
    factor_PQ = np.stack([utilities.factor[a] - utilities.factor[b] for _, a, b in pairs])
    return [pairs[pick.pair] for pick in choose(mean_P, factor_PQ, count, group_P=group_P)]


def _disputed(stage: Ask, job: Job, pool: AnswerPool) -> dict[int, str]:
    """The answers that were ranked, of the prompts with the largest share of contradicted votes."""
    if not job.inputs.get("rankings"):
        raise UserError("`by: disputed` needs the `rankings` that may contradict each other.")
    ballots, _ = read_ballots(job.all("rankings"))
    votes = count_votes([ballot for ballot in ballots if ballot.planted is None])
    worst = [p for p, share in votes.disputes().items() if p in pool.answers and share > 0][: stage.prompts]
    ranked = {(b.prompt_id, text) for b in ballots for text in b.candidates if text != b.planted}
    return {row: "disputed" for p in worst for row in pool.answers[p] if (p, pool.texts[row]) in ranked}


def _utilities(stage: Ask, job: Job, pool: AnswerPool) -> AnswerUtilities:
    """What is known of every answer.

    Raises:
        UserError: nothing is, or verdicts are missing.
    """
    if job.inputs.get("verdicts"):
        return _from_verdicts(stage, job, pool)
    if job.inputs.get("rankings"):
        return _from_rankings(job, pool)
    raise UserError(f"`by: {stage.by}` needs `verdicts` of a reward ensemble, or `rankings` so far. Give one of them.")


def _from_verdicts(stage: Ask, job: Job, pool: AnswerPool) -> AnswerUtilities:
    values: dict[str, dict[str, float]] = {}
    for artifact in job.all("verdicts"):
        for verdict in artifact.to_table(["subject", "model", "metric", "value"]).to_pylist():
            if verdict["metric"] == stage.metric:
                values.setdefault(verdict["model"] or "", {})[verdict["subject"]] = verdict["value"]
    if not values or (stage.by == "information" and len(values) < 2):
        raise UserError(
            f"the verdicts hold the metric `{stage.metric}` from {len(values)} models; expected information needs "
            "two or more (a reward ensemble). Name the right `metric`, add members, or use `by: max_min`."
        )
    rows = [row for group in pool.answers.values() for row in group]
    ids = [pool.ids[row] for row in rows]
    missing = [id for id in ids if any(id not in of for of in values.values())]
    if missing:
        raise UserError(
            f"{len(missing)} candidates have no verdict `{stage.metric}` from every model, {missing[0]} among them."
        )
    value_ER = np.array([[of[id] for id in ids] for _, of in sorted(values.items())])
    deviation_ER = (value_ER - value_ER.mean(axis=0)) / np.sqrt(max(len(values) - 1, 1))
    mean = dict(zip(rows, value_ER.mean(axis=0).tolist(), strict=True))
    return AnswerUtilities(mean, dict(zip(rows, list(deviation_ER.T), strict=True)), None)


def _from_rankings(job: Job, pool: AnswerPool) -> AnswerUtilities:
    ballots = [ballot for ballot in read_ballots(job.all("rankings"))[0] if ballot.planted is None]
    if not ballots:
        raise UserError("none of the rankings can be used: there is nothing to learn from yet. Use `by: random`.")
    judgements, numbering = to_judgements(ballots, Gold({}))
    fit = reliability.fit(judgements)
    mean: dict[int, float] = {}
    sd: dict[tuple[int, int], float] = {}
    for prompt_id, rows in pool.answers.items():
        item = {row: numbering.item.get((prompt_id, pool.texts[row])) for row in rows}
        mean |= {row: 0.0 if i is None else float(fit.utility_I[i]) for row, i in item.items()}
        for a, b in combinations(rows, 2):
            i, j = item[a], item[b]
            # An answer no one has ranked is as uncertain as any answer is.
            known = fit.difference(i, j)[1] if i is not None and j is not None else fit.spread * np.sqrt(2)
            sd[a, b] = sd[b, a] = float(known)
    return AnswerUtilities(mean, {row: np.zeros(1) for row in mean}, sd)
