"""`preferences`: rankings -> pairs to train on, with how sure one can be of each.

Every prompt's answers get utilities from all rankings of it, each annotator weighing as much as they have shown to be
worth (`reliability.py`). A pair is kept if annotators agree on it; every other pair is rejected with its reason.
Everything here is a function of the set of rankings: their order does not matter, and no random number is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine import seeds
from engine.errors import UserError
from engine.stage.job import Job, part_name
from engine.stage.stage import Stage, port
from engine.store.artifact import Artifact
from engine.store.schema import DATASETS, messages_digest, row_id
from labeling.preferences.ballots import Ballot, Gold, Index, Votes, count_votes, number, read_ballots, read_gold
from labeling.preferences.report import attention, report
from labeling.utilities import reliability

Kind = Literal["person", "scripted", "judge"]
# The reliability of a gold key: at this one, an answer worth one log-odd more is preferred 20 times out of 21.
GOLD = 3.0

EXTRA = [("confidence", pa.float64()), ("kinds", pa.string())]
PREFERENCE = pa.schema([*DATASETS["Preference"], *EXTRA])
REJECTED = pa.schema(
    [
        *(("id", pa.string()), ("parents", pa.list_(pa.string())), ("prompt_id", pa.string())),
        *(("annotator", pa.string()), ("chosen_id", pa.string()), ("rejected_id", pa.string())),
        *(("margin", pa.float64()), ("agreement", pa.float64()), ("annotators", pa.int32())),
        *(("confidence", pa.float64()), ("kinds", pa.string())),
        *(("reason", pa.string()), ("detail", pa.string()), ("failed", pa.bool_())),
    ]
)


class Preferences(Stage):
    """Turn rankings into preference pairs.

    Kept rows carry two more columns than the schema: `confidence`, the probability that `chosen` is worth more, and
    `kinds`, the kinds of annotator behind it (`person`, `judge+person`, ...).

    Rejected, by reason: `malformed`, `empty` (nothing ranked), `one_answer`, `flagged`, `kind`, `failed_gold`,
    `failed_attention`, `attention_check` (asks nothing real), `adjudicated` (someone else decides) are whole rankings; `identical` (one text twice), `not_compared`, `few_annotators`, `tie`, `conflict` (as much weight against as
    for), `low_agreement`, `low_margin`, `low_confidence` are pairs.
    """

    takes = {
        "rankings": port("Ranking", many=True),
        "gold": port("Preference", optional=True),
        "adjudications": port("Ranking", many=True, optional=True),
    }
    gives = "Preference"
    phase = "people"

    pairs: Literal["all", "best_worst", "adjacent"] = Field("all", description="Which pairs of a prompt's answers.")
    min_agreement: float = Field(
        0.5, ge=0, le=1, description="Least share of annotators, ties counted as not agreeing, who prefer the chosen."
    )
    min_annotators: int = Field(1, ge=1, description="Least annotators who compared the two.")
    min_margin: float = Field(0.0, ge=0, description="Least difference of utilities, in log-odds.")
    min_confidence: float = Field(0.0, ge=0, lt=1, description="Least probability that the chosen is worth more.")
    validation: float = Field(0.1, ge=0, lt=1, description="Share of prompts set aside for validation.")
    unranked: Literal["below", "ignored"] = Field(
        "below", description="Answers without a rank: worse than all that have one, or not seen."
    )
    weigh: bool = Field(True, description="Weigh annotators by the reliability they have shown.")
    position_bias: bool = Field(True, description="Estimate the pull of what is shown first, and take it out.")
    kinds: tuple[Kind, ...] | None = Field(
        None, description="Kinds of annotator that count. Must be said where people and judges are mixed."
    )
    ignore_flagged: tuple[str, ...] = Field((), description="Flags that set a ranking aside, e.g. can't judge.")
    min_gold: float | None = Field(
        None, ge=0, le=1, description="Set aside annotators who get less than this share of gold pairs right."
    )

    min_attention: float | None = Field(
        None, ge=0, le=1, description="Set aside annotators who rank less than this share above planted answers."
    )

    def run(self, job: Job) -> None:
        read, rejected = read_ballots(job.all("rankings"), self.ignore_flagged)
        checks = [ballot for ballot in read if ballot.planted is not None]
        ballots = [ballot for ballot in read if ballot.planted is None]
        rejected += [b.rejected("attention_check", "{} of {} right".format(*b.attention)) for b in checks]
        gold_artifact = job.maybe("gold")
        gold = read_gold(gold_artifact, ballots) if gold_artifact else Gold({})
        counted, aside = self._counted(ballots, gold, attention(checks))
        rejected += aside
        if adjudications := job.all("adjudications"):
            counted, aside = self._adjudicated(counted, adjudications)
            rejected += aside
        kept: list[dict[str, Any]] = []
        if counted:
            votes = count_votes(counted, self.unranked)
            judgements, index = number(counted, gold)
            fit = reliability.fit(
                judgements,
                unranked=self.unranked,
                weigh=self.weigh,
                position=self.position_bias,
                pinned={len(index.annotators): GOLD},
            )
            for row, reason, detail in self._pairs(counted, votes, fit, index):
                if reason is None:
                    kept.append(row)
                else:
                    rejected.append({**row, "reason": reason, "detail": detail, "failed": False})
            everyone = count_votes(ballots, self.unranked)
            job.summary(**report(ballots, counted, everyone, fit, index.annotators, gold, self.unranked, checks))
        _split(kept, self.validation)
        sides = {side: sum(row["split"] == side for row in kept) for side in ("train", "validation")}
        job.summary(pairs=sides, prompts={"ranked": len({b.prompt_id for b in ballots}), "kept": _prompts(kept)})
        rejected.sort(key=lambda row: (row["prompt_id"] or "", row["id"]))
        job.commit(
            part_name(0, [b.id for b in ballots]),
            pa.Table.from_pylist(kept, PREFERENCE),
            pa.Table.from_pylist(rejected, REJECTED),
            consumed=job.rows("rankings"),
        )

    def _adjudicated(
        self, counted: list[Ballot], artifacts: list[Artifact]
    ) -> tuple[list[Ballot], list[dict[str, Any]]]:
        """On prompts that were adjudicated, the adjudicators' rankings alone."""
        decisions, rejected = read_ballots(artifacts, self.ignore_flagged)
        decisions = [ballot for ballot in decisions if ballot.planted is None]
        decided = {ballot.prompt_id: ballot.annotator for ballot in decisions}
        rejected += [b.rejected("adjudicated", f"by {decided[b.prompt_id]}") for b in counted if b.prompt_id in decided]
        left = [*(ballot for ballot in counted if ballot.prompt_id not in decided), *decisions]
        return sorted(left, key=lambda b: (b.prompt_id, b.annotator, b.id)), rejected

    def _counted(
        self, ballots: list[Ballot], gold: Gold, attentive: dict[str, tuple[int, int]]
    ) -> tuple[list[Ballot], list[dict[str, Any]]]:
        """The rankings that count towards utilities, and the others as rejected rows.

        Raises:
            UserError: people are mixed with others, and the recipe does not say that they should be.
        """
        present = {ballot.kind for ballot in ballots}
        if self.kinds is None and len(present) > 1:
            raise UserError(
                f"the rankings come from several kinds of annotator ({', '.join(sorted(present))}). Say which count: "
                f"`kinds: [person]`, or `kinds: [{', '.join(sorted(present))}]` to mix them knowingly."
            )
        failed = {
            name: f"{right} of {asked} gold pairs right"
            for name, (right, asked) in gold.score(ballots).items()
            if self.min_gold is not None and asked and right < self.min_gold * asked
        }
        asleep = {
            name: f"{right} of {asked} answers above the planted one"
            for name, (right, asked) in attentive.items()
            if self.min_attention is not None and asked and right < self.min_attention * asked
        }
        counted: list[Ballot] = []
        aside: list[dict[str, Any]] = []
        for ballot in ballots:
            if self.kinds is not None and ballot.kind not in self.kinds:
                aside.append(ballot.rejected("kind", f"{ballot.kind} is not among `kinds`"))
            elif ballot.annotator in failed:
                aside.append(ballot.rejected("failed_gold", failed[ballot.annotator]))
            elif ballot.annotator in asleep:
                aside.append(ballot.rejected("failed_attention", asleep[ballot.annotator]))
            else:
                counted.append(ballot)
        return counted, aside

    def _pairs(
        self, counted: list[Ballot], votes: Votes, fit: reliability.Reliability, index: Index
    ) -> Iterator[tuple[dict[str, Any], str | None, str | None]]:
        """Every pair the recipe asks for: its row, and why it is rejected, if it is."""
        by_prompt: dict[str, list[Ballot]] = {}
        for ballot in counted:
            by_prompt.setdefault(ballot.prompt_id, []).append(ballot)
        weight = {name: max(float(fit.slope_A[a]), 0.0) for a, name in enumerate(index.annotators)}
        kind = {ballot.annotator: ballot.kind for ballot in counted}
        for prompt_id, about in by_prompt.items():
            candidates: dict[str, set[str]] = {}
            for ballot in about:
                for text, ids in ballot.candidates.items():
                    candidates.setdefault(text, set()).update(ids)
            for ids in candidates.values():
                first, *others = sorted(ids)
                for other in others:
                    row = {"id": row_id("Preference", prompt_id, first, other), "parents": [first, other]}
                    row |= {"prompt_id": prompt_id, "chosen_id": first, "rejected_id": other}
                    yield row, "identical", "both say the same, word for word"
            ranked = sorted(candidates, key=lambda t: (-round(float(fit.utility_I[index.item[prompt_id, t]]), 6), t))
            for better, worse in _wanted(ranked, self.pairs):
                opinion = votes.get(prompt_id, better, worse)
                margin, sd = fit.difference(index.item[prompt_id, better], index.item[prompt_id, worse])
                margin = round(margin, 6)
                confidence = round(NormalDist().cdf(margin / sd), 6) if sd > 0 else 0.5
                chosen_id, rejected_id = min(candidates[better]), min(candidates[worse])
                for_it = sum(v > 0 for v in opinion.values())
                row = {
                    "id": row_id("Preference", prompt_id, chosen_id, rejected_id),
                    "parents": [
                        *(b.id for b in about if better in b.candidates and worse in b.candidates),
                        *(chosen_id, rejected_id),
                    ],
                    "prompt_id": prompt_id,
                    "prompt": about[0].prompt,
                    "chosen": [{"role": "assistant", "content": better}],
                    "rejected": [{"role": "assistant", "content": worse}],
                    "chosen_id": chosen_id,
                    "rejected_id": rejected_id,
                    "margin": margin,
                    "agreement": for_it / len(opinion) if opinion else None,
                    "annotators": len(opinion),
                    "confidence": confidence,
                    "kinds": "+".join(sorted({kind[name] for name in opinion})),
                }
                yield row, *self._verdict(opinion, weight, margin, confidence)

    def _verdict(
        self, opinion: dict[str, int], weight: dict[str, float], margin: float, confidence: float
    ) -> tuple[str | None, str | None]:
        """Why a pair is rejected: a reason and a detail, or (None, None)."""
        wins, losses = (sum(np.sign(v) == side for v in opinion.values()) for side in (1, -1))
        told = f"{wins} for, {losses} against, {len(opinion) - wins - losses} undecided"
        if not opinion:
            return "not_compared", "no annotator ranked one of them above the other, or as equal"
        if len(opinion) < self.min_annotators:
            return "few_annotators", f"{len(opinion)} compared them, expected {self.min_annotators}"
        if not wins and not losses:
            return "tie", told
        if margin <= 0:
            return "conflict" if wins and losses else "tie", told
        pro, contra = (sum(weight[n] for n, v in opinion.items() if np.sign(v) == side) for side in (1, -1))
        if losses and pro <= contra:
            return "conflict", f"{told}; weights {pro:.2f} for, {contra:.2f} against"
        if wins < self.min_agreement * len(opinion):
            return "low_agreement", f"{told}; expected {self.min_agreement:.0%} for"
        if margin < self.min_margin:
            return "low_margin", f"{margin:.3f}, expected {self.min_margin}"
        if confidence < self.min_confidence:
            return "low_confidence", f"{confidence:.3f}, expected {self.min_confidence}"
        return None, None


def _wanted(ranked: list[str], pairs: str) -> Iterator[tuple[str, str]]:
    """Pairs of answers, better first, from answers in order of utility."""
    if pairs == "all":
        yield from combinations(ranked, 2)
    elif pairs == "adjacent":
        yield from pairwise(ranked)
    elif len(ranked) > 1:
        yield ranked[0], ranked[-1]


def _split(rows: list[dict[str, Any]], validation: float) -> None:
    """Fill `split`, in place: prompts in the order of their digests, the first share to validation.

    By the prompt's text: the same question under two ids is on one side.
    """
    asked = {messages_digest(row["prompt"]) for row in rows}
    order = sorted(asked, key=lambda text: seeds.derive("split", text))
    count = min(max(round(validation * len(order)), 1), len(order) - 1) if validation and len(order) > 1 else 0
    aside = set(order[:count])
    for row in rows:
        row["split"] = "validation" if messages_digest(row["prompt"]) in aside else "train"


def _prompts(rows: list[dict[str, Any]]) -> int:
    return len({row["prompt_id"] for row in rows})
