"""The work of `preferences`: rankings in, pairs out, everything else as rejected rows with their reasons.

Every prompt's answers get utilities from all rankings of it, each annotator weighing as much as they have shown to be
worth (`reliability.py`). A pair is kept if annotators agree on it; every other pair is rejected with its reason.
Everything here is a function of the set of rankings: their order does not matter, and no random number is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa

from engine import seeds
from engine.errors import UserError
from engine.stage.job import Job, part_name
from engine.store.artifact import Artifact
from engine.store.schema import DATASETS, messages_digest, row_id
from labeling.preferences.ballots import (
    Ballot,
    Gold,
    Numbering,
    Votes,
    count_votes,
    read_ballots,
    read_gold,
    to_judgements,
)
from labeling.preferences.report import attention, report
from labeling.preferences.stage import Preferences
from labeling.utilities import reliability

# The reliability of a gold key: at this one, an answer worth one log-odd more is preferred 20 times out of 21.
GOLD_RELIABILITY = 3.0

PREFERENCE = pa.schema([*DATASETS["Preference"], ("confidence", pa.float64()), ("kinds", pa.string())])
REJECTED = pa.schema(
    [
        *(("id", pa.string()), ("parents", pa.list_(pa.string())), ("prompt_id", pa.string())),
        *(("annotator", pa.string()), ("chosen_id", pa.string()), ("rejected_id", pa.string())),
        *(("margin", pa.float64()), ("agreement", pa.float64()), ("annotators", pa.int32())),
        *(("confidence", pa.float64()), ("kinds", pa.string())),
        *(("reason", pa.string()), ("detail", pa.string()), ("failed", pa.bool_())),
    ]
)


def to_pairs(stage: Preferences, job: Job) -> None:
    read, rejected = read_ballots(job.all("rankings"), stage.ignore_flagged)
    checks = [ballot for ballot in read if ballot.planted is not None]
    ballots = [ballot for ballot in read if ballot.planted is None]
    rejected += [b.rejected("attention_check", "{} of {} right".format(*b.attention)) for b in checks]
    gold_artifact = job.maybe("gold")
    gold = read_gold(gold_artifact, ballots) if gold_artifact else Gold({})
    counted, aside = _set_aside(stage, ballots, gold, attention(checks))
    rejected += aside
    if adjudications := job.all("adjudications"):
        counted, aside = _adjudicate(counted, adjudications, stage.ignore_flagged)
        rejected += aside
    pairs: list[dict[str, Any]] = []
    if counted:
        votes = count_votes(counted, stage.unranked)
        judgements, numbering = to_judgements(counted, gold)
        fit = reliability.fit(
            judgements,
            unranked=stage.unranked,
            weigh=stage.weigh,
            position=stage.position_bias,
            pinned={len(numbering.annotators): GOLD_RELIABILITY},
        )
        for row, reason, detail in _pairs(stage, counted, votes, fit, numbering):
            if reason is None:
                pairs.append(row)
            else:
                rejected.append({**row, "reason": reason, "detail": detail, "failed": False})
        everyone = count_votes(ballots, stage.unranked)
        job.summary(**report(ballots, counted, everyone, fit, numbering.annotators, gold, stage.unranked, checks))
    _split(pairs, stage.validation)
    sides = {side: sum(row["split"] == side for row in pairs) for side in ("train", "validation")}
    prompts = {"ranked": len({b.prompt_id for b in ballots}), "kept": len({row["prompt_id"] for row in pairs})}
    job.summary(pairs=sides, prompts=prompts)
    rejected.sort(key=lambda row: (row["prompt_id"] or "", row["id"]))
    job.commit(
        part_name(0, [b.id for b in ballots]),
        pa.Table.from_pylist(pairs, PREFERENCE),
        pa.Table.from_pylist(rejected, REJECTED),
        consumed=job.rows("rankings"),
    )


def _adjudicate(
    counted: list[Ballot], artifacts: list[Artifact], ignore_flagged: Sequence[str]
) -> tuple[list[Ballot], list[dict[str, Any]]]:
    """On prompts that were adjudicated, the adjudicators' rankings alone."""
    decisions, rejected = read_ballots(artifacts, ignore_flagged)
    decisions = [ballot for ballot in decisions if ballot.planted is None]
    decided = {ballot.prompt_id: ballot.annotator for ballot in decisions}
    rejected += [b.rejected("adjudicated", f"by {decided[b.prompt_id]}") for b in counted if b.prompt_id in decided]
    left = [*(ballot for ballot in counted if ballot.prompt_id not in decided), *decisions]
    return sorted(left, key=lambda b: (b.prompt_id, b.annotator, b.id)), rejected


def _set_aside(
    stage: Preferences, ballots: list[Ballot], gold: Gold, attentive: dict[str, tuple[int, int]]
) -> tuple[list[Ballot], list[dict[str, Any]]]:
    """The rankings that count towards utilities, and the others as rejected rows.

    Raises:
        UserError: people are mixed with others, and the recipe does not say that they should be.
    """
    present = {ballot.kind for ballot in ballots}
    if stage.kinds is None and len(present) > 1:
        raise UserError(
            f"the rankings come from several kinds of annotator ({', '.join(sorted(present))}). Say which count: "
            f"`kinds: [person]`, or `kinds: [{', '.join(sorted(present))}]` to mix them knowingly."
        )
    failed = {
        name: f"{right} of {asked} gold pairs right"
        for name, (right, asked) in gold.score(ballots).items()
        if stage.min_gold is not None and asked and right < stage.min_gold * asked
    }
    asleep = {
        name: f"{right} of {asked} answers above the planted one"
        for name, (right, asked) in attentive.items()
        if stage.min_attention is not None and asked and right < stage.min_attention * asked
    }
    counted: list[Ballot] = []
    aside: list[dict[str, Any]] = []
    for ballot in ballots:
        if stage.kinds is not None and ballot.kind not in stage.kinds:
            aside.append(ballot.rejected("kind", f"{ballot.kind} is not among `kinds`"))
        elif ballot.annotator in failed:
            aside.append(ballot.rejected("failed_gold", failed[ballot.annotator]))
        elif ballot.annotator in asleep:
            aside.append(ballot.rejected("failed_attention", asleep[ballot.annotator]))
        else:
            counted.append(ballot)
    return counted, aside


def _pairs(
    stage: Preferences, counted: list[Ballot], votes: Votes, fit: reliability.Reliability, numbering: Numbering
) -> Iterator[tuple[dict[str, Any], str | None, str | None]]:
    """Every pair the recipe asks for: its row, and why it is rejected, if it is."""
    by_prompt: dict[str, list[Ballot]] = {}
    for ballot in counted:
        by_prompt.setdefault(ballot.prompt_id, []).append(ballot)
    weight = {name: max(float(fit.slope_A[a]), 0.0) for a, name in enumerate(numbering.annotators)}
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
        item = {text: numbering.item[prompt_id, text] for text in candidates}
        by_utility = sorted(candidates, key=lambda text: (-round(float(fit.utility_I[item[text]]), 6), text))
        for better, worse in _wanted(by_utility, stage.pairs):
            opinion = votes.get(prompt_id, better, worse)
            margin, sd = fit.difference(item[better], item[worse])
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
            yield row, *_verdict(stage, opinion, weight, margin, confidence)


def _verdict(
    stage: Preferences, opinion: dict[str, int], weight: dict[str, float], margin: float, confidence: float
) -> tuple[str | None, str | None]:
    """Why a pair is rejected: a reason and a detail, or (None, None)."""
    wins, losses = (sum(np.sign(v) == side for v in opinion.values()) for side in (1, -1))
    tally = f"{wins} for, {losses} against, {len(opinion) - wins - losses} undecided"
    if not opinion:
        return "not_compared", "no annotator ranked one of them above the other, or as equal"
    if len(opinion) < stage.min_annotators:
        return "few_annotators", f"{len(opinion)} compared them, expected {stage.min_annotators}"
    if not wins and not losses:
        return "tie", tally
    if margin <= 0:
        return "conflict" if wins and losses else "tie", tally
    pro, contra = (sum(weight[n] for n, v in opinion.items() if np.sign(v) == side) for side in (1, -1))
    if losses and pro <= contra:
        return "conflict", f"{tally}; weights {pro:.2f} for, {contra:.2f} against"
    if wins < stage.min_agreement * len(opinion):
        return "low_agreement", f"{tally}; expected {stage.min_agreement:.0%} for"
    if margin < stage.min_margin:
        return "low_margin", f"{margin:.3f}, expected {stage.min_margin}"
    if confidence < stage.min_confidence:
        return "low_confidence", f"{confidence:.3f}, expected {stage.min_confidence}"
    return None, None


def _wanted(by_utility: list[str], pairs: str) -> Iterator[tuple[str, str]]:
    """Pairs of answers, better first, from answers in order of utility."""
    if pairs == "all":
        yield from combinations(by_utility, 2)
    elif pairs == "adjacent":
        yield from pairwise(by_utility)
    elif len(by_utility) > 1:
        yield by_utility[0], by_utility[-1]


def _split(rows: list[dict[str, Any]], validation: float) -> None:
    """Fill `split`, in place: prompts in the order of their digests, the first share to validation.

    By the prompt's text: the same question under two ids is on one side.
    """
    texts = [messages_digest(row["prompt"]) for row in rows]
    order = sorted(set(texts), key=lambda text: seeds.derive("split", text))
    count = min(max(round(validation * len(order)), 1), len(order) - 1) if validation and len(order) > 1 else 0
    aside = set(order[:count])
    for row, text in zip(rows, texts, strict=True):
        row["split"] = "validation" if text in aside else "train"
