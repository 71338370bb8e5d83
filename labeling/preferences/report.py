"""What the labels of a run are worth, in numbers: agreement, annotators, kinds of annotator, gold questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from math import sqrt
from typing import Any

import numpy as np

from labeling.preferences.ballots import Ballot, Gold, Votes
from labeling.utilities import agreement
from labeling.utilities.reliability import Z95, Reliability

MOST_PAIRED = 20  # annotators up to which the table of all pairs of them is kept


def report(
    ballots: Sequence[Ballot],
    counted: Sequence[Ballot],
    votes: Votes,
    fit: Reliability,
    names: Sequence[str],
    gold: Gold,
    unranked: str,
    checks: Sequence[Ballot] = (),
) -> dict[str, Any]:
    """The summary of a `preferences` stage, as JSON.

    Args:
        ballots: all valid rankings; `counted` those that made the utilities, by the annotators in `names`.
        votes: on pairs, of all rankings.
        checks: attention checks.
    """
    kind = {ballot.annotator: ballot.kind for ballot in ballots}
    kinds = sorted(set(kind.values()))
    below = unranked == "below"
    summary: dict[str, Any] = {
        "agreement": {"alpha": _alpha(counted, below), "kendall_w": _kendall(counted, below)},
        "annotators": _annotators(ballots, votes, fit, names, gold, checks),
        "kinds": {name: _kind(name, ballots, votes, kind, below) for name in kinds},
        "position_bias": {
            "estimate": _round(fit.position),
            "low": _round(fit.position - Z95 * fit.position_se),
            "high": _round(fit.position + Z95 * fit.position_se),
            "detected": bool(fit.position_se > 0 and abs(fit.position) > Z95 * fit.position_se),
        },
        "model": {
            "spread": _round(fit.spread),
            "ties": {str(size): _round(v) for size, v in zip(fit.sizes[1:], fit.log_delta[1:], strict=True)},
            "reliability_estimated": fit.estimated,
        },
    }
    if len(kind) <= MOST_PAIRED:
        summary["between"] = _between(votes)
    return summary


def _alpha(ballots: Sequence[Ballot], below: bool) -> dict[str, Any]:
    unit: list[int] = []
    value: list[float] = []
    block: list[int] = []
    units: dict[tuple[str, str], int] = {}
    blocks: dict[str, int] = {}
    for ballot in ballots:
        ranks = agreement.mid_ranks([rank or None for rank in ballot.ranks], below)
        for text, rank in zip(ballot.candidates, ranks, strict=True):
            unit.append(units.setdefault((ballot.prompt_id, text), len(units)))
            value.append(rank)
            block.append(blocks.setdefault(ballot.prompt_id, len(blocks)))
    return agreement.krippendorff_alpha(unit, value, block).as_json()


def _kendall(ballots: Sequence[Ballot], below: bool) -> dict[str, Any]:
    """Over the prompts of which two annotators or more ranked the same answers."""
    same: dict[tuple[str, ...], list[list[float]]] = {}
    for ballot in ballots:
        if below or all(ballot.ranks):
            ranks = agreement.mid_ranks([rank or None for rank in ballot.ranks])
            same.setdefault((ballot.prompt_id, *ballot.candidates), []).append(ranks)
    return agreement.mean_kendall_w([ranks for ranks in same.values() if len(ranks) > 1]).as_json()


def attention(checks: Sequence[Ballot]) -> dict[str, tuple[int, int]]:
    """Annotator -> answers ranked above a planted one, answers compared with one."""
    found: dict[str, tuple[int, int]] = {}
    for ballot in checks:
        (right, asked), (more_right, more) = found.get(ballot.annotator, (0, 0)), ballot.attention
        found[ballot.annotator] = (right + more_right, asked + more)
    return found


def _annotators(
    ballots: Sequence[Ballot],
    votes: Votes,
    fit: Reliability,
    names: Sequence[str],
    gold: Gold,
    checks: Sequence[Ballot],
) -> dict[str, Any]:
    rankings = Counter(ballot.annotator for ballot in ballots)
    kind = {ballot.annotator: ballot.kind for ballot in ballots}
    scores = gold.score(ballots)
    agrees = _with_others(votes)
    attentive = attention(checks)
    found: dict[str, Any] = {}
    for name in sorted(rankings):
        entry: dict[str, Any] = {"kind": kind[name], "rankings": rankings[name]}
        if name in names:
            a = names.index(name)
            slope, se = float(fit.slope_A[a]), float(fit.slope_se_A[a])
            pull, pull_se = float(fit.position_A[a]), float(fit.position_se_A[a])
            entry |= {
                "reliability": _round(slope),
                "reliability_low": _round(slope - Z95 * se),
                "reliability_high": _round(slope + Z95 * se),
                "accuracy": _round(fit.accuracy(slope)),
                "unreliable": bool(fit.unreliable_A[a]),
                "position_bias": _round(pull),
                "position_bias_low": _round(pull - Z95 * pull_se),
                "position_bias_high": _round(pull + Z95 * pull_se),
            }
        if name in agrees:
            entry["agrees_with_others"] = _share(*agrees[name])
        if name in scores:
            entry["gold"] = _share(*scores[name])
        if name in attentive:
            entry["attention"] = _share(*attentive[name])
        found[name] = entry
    return found


def _kind(name: str, ballots: Sequence[Ballot], votes: Votes, kind: dict[str, str], below: bool) -> dict[str, Any]:
    """One kind of annotator: its share, its biases, and how far a judge or a script agrees with people."""
    own = [ballot for ballot in ballots if ballot.kind == name]
    longer, first = Counter[bool](), Counter[bool]()
    for ballot in own:
        texts = list(ballot.candidates)
        for i, j in combinations(range(len(texts)), 2):
            a, b = (ballot.ranks[k] or (10**9 if below else 0) for k in (i, j))
            if a == b or not a or not b:
                continue
            if len(texts[i]) != len(texts[j]):
                longer[(a < b) == (len(texts[i]) > len(texts[j]))] += 1
            if ballot.shown[i] >= 0 and ballot.shown[j] >= 0:
                first[(a < b) == (ballot.shown[i] < ballot.shown[j])] += 1
    found: dict[str, Any] = {
        "rankings": len(own),
        "share": _round(len(own) / len(ballots)),
        "annotators": len({ballot.annotator for ballot in own}),
        "prefers_longer": _share(longer[True], longer.total()),
        "prefers_first_shown": _share(first[True], first.total()),
    }
    if name != "person" and "person" in kind.values():
        right = asked = 0
        for opinion in votes.by_pair.values():
            people = int(np.sign(sum(np.sign(v) for n, v in opinion.items() if kind[n] == "person")))
            theirs = [int(np.sign(v)) for n, v in opinion.items() if kind[n] == name and v]
            if people:
                right, asked = right + sum(v == people for v in theirs), asked + len(theirs)
        found["agrees_with_people"] = _share(right, asked)
    return found


def _with_others(votes: Votes) -> dict[str, tuple[int, int]]:
    """Annotator -> pairs on which they side with the majority of the others, pairs where both took a side."""
    found: dict[str, tuple[int, int]] = {}
    for opinion in votes.by_pair.values():
        signs = {name: int(np.sign(v)) for name, v in opinion.items()}
        total = sum(signs.values())
        for name, sign in signs.items():
            others = total - sign
            if sign and others:
                right, asked = found.get(name, (0, 0))
                found[name] = (right + (sign * others > 0), asked + 1)
    return found


def _between(votes: Votes) -> list[dict[str, Any]]:
    """For each two annotators: the pairs both judged, by same side, opposite sides, and a tie for one or both."""
    table: dict[tuple[str, str], Counter[str]] = {}
    for opinion in votes.by_pair.values():
        names = sorted(opinion)
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                x, y = np.sign(opinion[a]), np.sign(opinion[b])
                word = ("same" if x == y else "opposite") if x and y else "both_tied" if x == y else "one_tied"
                table.setdefault((a, b), Counter())[word] += 1
    return [{"a": a, "b": b, **dict(sorted(count.items()))} for (a, b), count in sorted(table.items())]


def _share(right: int, asked: int) -> dict[str, Any]:
    """A share and its Wilson interval."""
    if not asked:
        return {"value": None, "low": None, "high": None, "count": 0}
    p, z2 = right / asked, Z95**2
    middle, half = p + z2 / (2 * asked), Z95 * sqrt(p * (1 - p) / asked + z2 / (4 * asked**2))
    scale = 1 + z2 / asked
    return {
        "value": _round(p),
        "low": _round((middle - half) / scale),
        "high": _round((middle + half) / scale),
        "count": asked,
    }


def _round(value: float) -> float:
    """Six digits: what is left beyond them depends on the machine's arithmetic."""
    return round(float(value), 6)
