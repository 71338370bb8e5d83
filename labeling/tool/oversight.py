"""How labelling goes: who judged how much and how fast, how far annotators agree as time goes by, and where they don't.

Tables for `flywheel argilla status`, `flywheel ui` and the report. What depends on the clock stays out of an artifact's digest.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from itertools import combinations, pairwise
from statistics import median
from typing import Any

from labeling.tool.task import Dataset, DatasetProgress, UserProgress
from labeling.utilities.agreement import Agreement, krippendorff_alpha, mid_ranks

IDLE = 300.0  # seconds between two submissions after which nobody was at work
MOST_DISPUTED = 20
WINDOWS = 12


@dataclass(frozen=True)
class RecordJudgement:
    """One submitted judgement of one record. `ranks` are of the same answers in the same order for all of a record.

    `url` is where who judged it finds it.
    """

    record: str
    annotator: str
    ranks: Sequence[int | None]
    at: datetime
    prompt: str
    url: str


@dataclass(frozen=True)
class OversightTable:
    """`links` are addresses by row; a row without one has None."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    links: list[str | None]

    def as_json(self) -> dict[str, Any]:
        return {"title": self.title, "columns": self.columns, "rows": self.rows, "links": self.links}


def seconds_per_record(at: Sequence[datetime]) -> float | None:
    """The median time between two submissions of one annotator, pauses longer than IDLE left out; None if unknown."""
    ordered = sorted(at)
    gaps = [(b - a).total_seconds() for a, b in pairwise(ordered)]
    worked = [gap for gap in gaps if gap <= IDLE]
    return median(worked) if worked else None


def sides(ranks: Sequence[int | None]) -> list[int | None]:
    """For every two answers: 1 the first is better, -1 the second, 0 a tie, None if neither was ranked."""
    return [
        None if a is None and b is None else 1 if b is None else -1 if a is None else (b > a) - (b < a)
        for a, b in combinations(ranks, 2)
    ]


def _by_record(judgements: Sequence[RecordJudgement]) -> dict[str, list[RecordJudgement]]:
    found: dict[str, list[RecordJudgement]] = {}
    for one in sorted(judgements, key=lambda j: j.at):
        found.setdefault(one.record, []).append(one)
    return found


def _compared(a: RecordJudgement, b: RecordJudgement) -> Counter[str]:
    """The pairs of answers both took a stand on, by how their stands compare."""
    words: Counter[str] = Counter()
    for x, y in zip(sides(a.ranks), sides(b.ranks), strict=True):
        if x is not None and y is not None:
            words["same" if x == y and x else "both tied" if x == y else "opposite" if x and y else "one tied"] += 1
    return words


def agreement_over_time(judgements: Sequence[RecordJudgement], windows: int = WINDOWS) -> list[tuple[int, float]]:
    """(records judged twice so far, share of pairs of answers on which two annotators agreed) in each window of records."""
    complete = [group for group in _by_record(judgements).values() if len({j.annotator for j in group}) > 1]
    complete.sort(key=lambda group: group[-1].at)
    points: list[tuple[int, float]] = []
    size = max(1, -(-len(complete) // windows))
    for start in range(0, len(complete), size):
        window = complete[start : start + size]
        words: Counter[str] = Counter()
        for group in window:
            for a, b in combinations(group, 2):
                words += _compared(a, b)
        if words.total():
            points.append((start + len(window), (words["same"] + words["both tied"]) / words.total()))
    return points


def alpha(judgements: Sequence[RecordJudgement]) -> Agreement:
    """Krippendorff's ordinal alpha: the values of an answer are its ranks by all who judged its record. Answers without a rank share
    the last one."""
    units: dict[tuple[str, int], int] = {}
    records: dict[str, int] = {}
    values = [
        (units.setdefault((one.record, place), len(units)), rank, records.setdefault(one.record, len(records)))
        for one in judgements
        for place, rank in enumerate(mid_ranks(one.ranks))
    ]
    unit, value, block = zip(*values, strict=True) if values else ((), (), ())
    return krippendorff_alpha(unit, value, block)


def dispute(group: Sequence[RecordJudgement]) -> float:
    """The lesser side's share of all stands on the pairs of one record; 0 is full agreement, 1/2 an even split."""
    lesser = total = 0
    for stands in zip(*(sides(j.ranks) for j in group), strict=True):
        for_it, against = sum(s == 1 for s in stands), sum(s == -1 for s in stands)
        lesser += min(for_it, against)
        total += sum(s is not None for s in stands)
    return lesser / total if total else 0.0


def tables(
    judgements: Sequence[RecordJudgement], others: Mapping[str, Mapping[str, int]] | None = None
) -> list[OversightTable]:
    """Annotators, what each two of them make of the same pairs, and the most disputed records.

    Args:
        others: annotator -> drafts and discarded responses, by status.
    """
    groups = _by_record(judgements)
    agrees: dict[str, Counter[str]] = {}
    between: dict[tuple[str, str], Counter[str]] = {}
    for group in groups.values():
        for a, b in combinations(group, 2):
            if a.annotator == b.annotator:
                continue
            words = _compared(a, b)
            between.setdefault(tuple(sorted((a.annotator, b.annotator))), Counter()).update(words)  # pyright: ignore
            for name in (a.annotator, b.annotator):
                agrees.setdefault(name, Counter()).update(words)
    own: dict[str, list[datetime]] = {name: [] for name in others or {}}
    for one in judgements:
        own.setdefault(one.annotator, []).append(one.at)
    people: list[tuple[Any, ...]] = []
    for name, at in sorted(own.items()):
        words, counts, pace = agrees.get(name, Counter()), (others or {}).get(name, {}), seconds_per_record(at)
        share = _percent(words["same"] + words["both tied"], words.total())
        left = (counts.get("draft", 0), counts.get("discarded", 0)) if others is not None else ()
        people.append((name, len(at), *left, "–" if pace is None else f"{pace:.0f} s", share))
    worst = sorted(((dispute(group), key) for key, group in groups.items()), key=lambda item: (-item[0], item[1]))
    disputed = [(share, groups[key]) for share, key in worst if share > 0][:MOST_DISPUTED]
    kinds = ("same", "opposite", "one tied", "both tied")
    return [
        OversightTable(
            "Annotators",
            ("annotator", "submitted", *(("drafts", "discarded") if others is not None else ()), "a record", "agrees"),
            people,
            [None] * len(people),
        ),
        OversightTable(
            "Two annotators on the same pairs of answers",
            ("annotators", *kinds),
            [(f"{a}, {b}", *(words[kind] for kind in kinds)) for (a, b), words in sorted(between.items())],
            [None] * len(between),
        ),
        OversightTable(
            "Disputed records",
            ("prompt", "against the majority", "annotators"),
            [
                (" ".join(g[0].prompt.split())[:100], f"{share:.0%}", ", ".join(j.annotator for j in g))
                for share, g in disputed
            ],
            [g[0].url for _, g in disputed],
        ),
    ]


@dataclass(frozen=True)
class DatasetStatus:
    """A dataset as it stands; `tables` say who judged what, and how far they agree (empty if not asked for), `alpha` is Krippendorff's.

    `datasets` are several where records were dealt out, each to a dataset of an annotator's own.
    """

    dataset: Dataset | None
    name: str
    workspace: str
    progress: DatasetProgress
    tables: list[OversightTable]
    agreement: list[tuple[int, float]]
    datasets: tuple[Dataset, ...] = ()
    alpha: Agreement | None = None


def dataset_status(
    name: str,
    workspace: str,
    datasets: Sequence[Dataset],
    progress: Sequence[DatasetProgress],
    judged: Sequence[RecordJudgement],
) -> DatasetStatus:
    """What is known of datasets by one name, as of one: each has records of its own."""
    users: dict[str, UserProgress] = {}
    for one in progress:
        users |= one.users
    total, done = (sum(getattr(one, part) for one in progress) for part in ("total", "completed"))
    left = {user: {"draft": counts.draft, "discarded": counts.discarded} for user, counts in users.items()}
    return DatasetStatus(
        datasets[0] if datasets else None,
        name,
        workspace,
        DatasetProgress(total, done, users),
        tables(judged, left) if judged else [],
        agreement_over_time(judged) if judged else [],
        tuple(datasets),
        alpha(judged) if judged else None,
    )


def same_for_all(fields: Mapping[str, Any], ranks: Sequence[int | None], labels: str) -> tuple[str, list[int | None]]:
    """What names a prompt with its answers in whatever order and dataset they are shown, and the ranks in one order."""
    order = sorted(range(len(labels)), key=lambda place: fields[labels[place]])
    shown = [fields["prompt"], *(fields[labels[place]] for place in order)]
    return sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest(), [ranks[place] for place in order]


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "–"
