"""Ranking rows, checked and ready to count: one ballot a row, answers with one text merged, votes on pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from engine.store.artifact import Artifact
from engine.store.schema import messages_digest, row_id
from labeling.utilities.bradley_terry import Ints
from labeling.utilities.reliability import Judgements

COLUMNS = [
    *("id", "prompt_id", "prompt", "candidates", "completions", "ranks", "shown"),
    *("annotator", "annotator_kind", "flags"),
]


@dataclass(frozen=True)
class Ballot:
    """One annotator's ranking of different texts.

    Attributes:
        candidates: text -> ids of the candidates that say it, in the order of the columns below.
        ranks: 1 best, equal ranks are ties, 0 not ranked; by text.
        shown: position from 0, -1 unknown; by text.
        planted: the text that answers another prompt, in an attention check; None in a real question.
    """

    id: str
    prompt_id: str
    prompt: list[dict[str, str]]
    candidates: dict[str, list[str]]
    ranks: list[int]
    shown: list[int]
    annotator: str
    kind: str
    planted: str | None = None

    @property
    def attention(self) -> tuple[int, int]:
        """Of an attention check: answers ranked above the planted one, answers compared with it."""
        rank = dict(zip(self.candidates, self.ranks, strict=True))
        planted = rank[self.planted] if self.planted is not None else 0
        others = [r for text, r in rank.items() if text != self.planted and (r or planted)]
        return sum(r > 0 and (not planted or r < planted) for r in others), len(others)

    def rejected(self, reason: str, detail: str) -> dict[str, Any]:
        return _rejected({"id": self.id, "prompt_id": self.prompt_id, "annotator": self.annotator}, reason, detail)


def read_ballots(artifacts: Sequence[Artifact], ignore_flagged: Sequence[str] = ()) -> tuple[list[Ballot], list[Any]]:
    """All ballots, ordered by prompt, annotator and id, and the rows that are none, with their reasons."""
    rows: dict[str, dict[str, Any]] = {}
    for artifact in artifacts:
        table = artifact.to_table()
        names = [*COLUMNS, "planted"] if "planted" in table.column_names else COLUMNS
        rows |= {row["id"]: row for row in table.select(names).to_pylist()}
    ballots: list[Ballot] = []
    rejected: list[dict[str, Any]] = []
    for row in sorted(rows.values(), key=lambda r: (r["prompt_id"] or "", r["annotator"] or "", r["id"])):
        flagged = [flag for flag in row["flags"] or () if flag in ignore_flagged]
        if wrong := _wrong(row):
            rejected.append(_rejected(row, "malformed", wrong, failed=True))
        elif flagged:
            rejected.append(_rejected(row, "flagged", ", ".join(flagged)))
        elif all(rank is None for rank in row["ranks"]):
            rejected.append(_rejected(row, "empty", "no answer has a rank"))
        elif len(set(row["completions"])) < 2:
            rejected.append(_rejected(row, "one_answer", "all answers say the same"))
        else:
            ballots.append(_ballot(row))
    return ballots, rejected


def _wrong(row: dict[str, Any]) -> str | None:
    """What is wrong with a row, or None."""
    lengths = {name: None if row[name] is None else len(row[name]) for name in ("candidates", "completions", "ranks")}
    if len(set(lengths.values())) > 1 or None in lengths.values():
        return f"candidates, completions and ranks must be as many as each other; found {lengths}"
    if row["shown"] is not None and len(row["shown"]) != len(row["ranks"]):
        return f"{len(row['shown'])} positions for {len(row['ranks'])} answers"
    if any(rank is not None and rank < 1 for rank in row["ranks"]):
        return f"ranks start at 1; found {row['ranks']}"
    missing = [name for name in ("prompt_id", "prompt", "annotator") if not row[name]]
    missing += ["completions"] if None in row["completions"] else []
    missing += ["candidates"] if None in row["candidates"] else []
    if row.get("planted") is not None and row["planted"] not in row["candidates"]:
        return f"the planted candidate {row['planted']} is not among the candidates"
    return f"no {', '.join(missing)}" if missing else None


def _ballot(row: dict[str, Any]) -> Ballot:
    """Candidates with one text become one, at the mean of their ranks and of the places where they were shown."""
    candidates: dict[str, list[str]] = {}
    ranks: dict[str, list[int]] = {}
    shown: dict[str, list[int]] = {}
    places = row["shown"] or [None] * len(row["ranks"])
    for candidate, text, rank, place in sorted(
        zip(row["candidates"], row["completions"], row["ranks"], places, strict=True), key=lambda c: (c[1], c[0])
    ):
        candidates.setdefault(text, []).append(candidate)
        ranks.setdefault(text, []).extend([] if rank is None else [rank])
        shown.setdefault(text, []).extend([] if place is None else [place])
    mean_rank = {text: sum(r) / len(r) for text, r in ranks.items() if r}
    mean_place = {text: sum(p) / len(p) for text, p in shown.items() if p}
    levels = {value: level for level, value in enumerate(sorted(set(mean_rank.values())), 1)}
    order = {text: place for place, text in enumerate(sorted(mean_place, key=lambda t: (mean_place[t], t)))}
    return Ballot(
        row["id"],
        row["prompt_id"],
        row["prompt"],
        candidates,
        [levels[mean_rank[text]] if text in mean_rank else 0 for text in candidates],
        [order.get(text, -1) for text in candidates],
        row["annotator"],
        row["annotator_kind"] or "person",
        next((t for t, ids in candidates.items() if row.get("planted") in ids), None),
    )


def _rejected(row: dict[str, Any], reason: str, detail: str, failed: bool = False) -> dict[str, Any]:
    return {
        "id": row["id"],
        "prompt_id": row["prompt_id"],
        "annotator": row["annotator"],
        "reason": reason,
        "detail": detail,
        "failed": failed,
    }


@dataclass(frozen=True)
class Votes:
    """What annotators said about pairs. (prompt, smaller text, larger text) -> annotator -> net votes for the smaller."""

    by_pair: dict[tuple[str, str, str], dict[str, int]] = field(default_factory=lambda: {})

    def get(self, prompt_id: str, left: str, right: str) -> dict[str, int]:
        """Annotator -> above 0 for `left`, below 0 for `right`, 0 undecided. Only those who compared the two."""
        if left <= right:
            return self.by_pair.get((prompt_id, left, right), {})
        return {name: -net for name, net in self.by_pair.get((prompt_id, right, left), {}).items()}

    def disputes(self) -> dict[str, float]:
        """Prompt id -> votes for the lesser side of its pairs, as a share of all votes on them; most disputed first."""
        lesser: dict[str, int] = {}
        total: dict[str, int] = {}
        for (prompt_id, _, _), opinion in self.by_pair.items():
            sides = [sum(v > 0 for v in opinion.values()), sum(v < 0 for v in opinion.values())]
            lesser[prompt_id] = lesser.get(prompt_id, 0) + min(sides)
            total[prompt_id] = total.get(prompt_id, 0) + len(opinion)
        share = {prompt_id: lesser[prompt_id] / total[prompt_id] for prompt_id in total}
        return dict(sorted(share.items(), key=lambda item: (-item[1], item[0])))


def count_votes(ballots: Sequence[Ballot], unranked: str = "below") -> Votes:
    """Count what each annotator said about each pair; several ballots of one annotator add up."""
    votes = Votes()
    for ballot in ballots:
        for (left, a), (right, b) in combinations(zip(ballot.candidates, ballot.ranks, strict=True), 2):
            if (not a and not b) or (unranked == "ignored" and not (a and b)):
                continue
            said = -1 if not a else 1 if not b else (b > a) - (b < a)
            if left > right:
                left, right, said = right, left, -said
            opinions = votes.by_pair.setdefault((ballot.prompt_id, left, right), {})
            opinions[ballot.annotator] = opinions.get(ballot.annotator, 0) + said
    return votes


@dataclass(frozen=True)
class Gold:
    """Pairs whose better answer is known: prompt id -> (better text, worse text)."""

    pairs: dict[str, list[tuple[str, str]]]

    def score(self, ballots: Sequence[Ballot]) -> dict[str, tuple[int, int]]:
        """Annotator -> gold pairs right, gold pairs judged. Undecided is not right."""
        found: dict[str, tuple[int, int]] = {}
        for ballot in ballots:
            rank = dict(zip(ballot.candidates, ballot.ranks, strict=True))
            for better, worse in self.pairs.get(ballot.prompt_id, ()):
                if not rank.get(better) and not rank.get(worse):
                    continue
                if better in rank and worse in rank:
                    right, asked = found.get(ballot.annotator, (0, 0))
                    is_right = rank[better] > 0 and (rank[better] < rank[worse] or not rank[worse])
                    found[ballot.annotator] = (right + is_right, asked + 1)
        return found


def read_gold(artifact: Artifact, ballots: Sequence[Ballot]) -> Gold:
    """The gold pairs among what was ranked, found by candidate id, else by text."""
    texts = {
        (ballot.prompt_id, candidate): text
        for ballot in ballots
        for text, ids in ballot.candidates.items()
        for candidate in ids
    }
    pairs: dict[str, list[tuple[str, str]]] = {}
    columns = ["prompt_id", "prompt", "chosen", "rejected", "chosen_id", "rejected_id"]
    for row in artifact.to_table(columns).to_pylist():
        # A plain file of pairs may name no prompt: it has the id that rankings of one's own get by what the prompt says.
        prompt_id = row["prompt_id"] or row_id("Prompt", messages_digest(row["prompt"]))
        better = texts.get((prompt_id, row["chosen_id"])) or row["chosen"][-1]["content"]
        worse = texts.get((prompt_id, row["rejected_id"])) or row["rejected"][-1]["content"]
        if better != worse:
            pairs.setdefault(prompt_id, []).append((better, worse))
    return Gold({prompt_id: sorted(set(found)) for prompt_id, found in sorted(pairs.items())})


@dataclass(frozen=True)
class Numbering:
    """Numbers of annotators and of (prompt id, text). The gold key is one annotator more."""

    annotators: list[str]
    item: dict[tuple[str, str], int]


def to_judgements(ballots: Sequence[Ballot], gold: Gold) -> tuple[Judgements, Numbering]:
    """Ballots and gold pairs as arrays, in an order that depends on what they are about alone."""
    annotators = sorted({ballot.annotator for ballot in ballots})
    who = {name: a for a, name in enumerate(annotators)}
    keyed = sorted({(ballot.prompt_id, text) for ballot in ballots for text in ballot.candidates})
    item = {key: i for i, key in enumerate(keyed)}
    block = {prompt_id: b for b, prompt_id in enumerate(sorted({ballot.prompt_id for ballot in ballots}))}
    items = [[item[ballot.prompt_id, text] for text in ballot.candidates] for ballot in ballots]
    ranks, shown = [ballot.ranks for ballot in ballots], [ballot.shown for ballot in ballots]
    annotator = [who[ballot.annotator] for ballot in ballots]
    for prompt_id, pairs in gold.pairs.items():
        for better, worse in pairs:
            if (prompt_id, better) in item and (prompt_id, worse) in item:
                items.append([item[prompt_id, better], item[prompt_id, worse]])
                ranks.append([1, 2])
                shown.append([-1, -1])
                annotator.append(len(annotators))
    judgements = Judgements(
        _padded(items, -1),
        _padded(ranks, 0),
        _padded(shown, -1),
        np.array(annotator, np.int64),
        np.array([block[prompt_id] for prompt_id, _ in keyed], np.int64),
        len(annotators) + 1,
    )
    return judgements, Numbering(annotators, item)


def _padded(rows: list[list[int]], fill: int) -> Ints:
    width = max(len(row) for row in rows)
    return np.array([[*row, *[fill] * (width - len(row))] for row in rows], np.int64)
