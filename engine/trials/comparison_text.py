"""A comparison in words, numbers and small curves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from engine.statistics.differences import Difference
from engine.trials.comparison import Changed, CurvePair, MetricPair, RunComparison
from engine.view.rows import shorten
from engine.view.spending import in_words

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 24


def number(value: float | None) -> str:
    """Four digits that count."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 1000 else f"{value:.4g}"


def with_interval(told: Difference) -> str:
    return f"{told.value:+.4g} ({told.low:+.4g} to {told.high:+.4g})"


def lines(found: RunComparison) -> Iterator[str]:
    """What differs first, then whether it is beyond noise, then the numbers behind it."""
    one, other = found.first, found.second
    yield f"{one} and {other}: {_verdict(found)}"
    yield ""
    yield "Configured otherwise:" if found.configured else "Nothing is configured otherwise."
    for stage, told in found.configured.items():
        yield from (f"  {stage}: {line}" for line in told)
    if found.shared:
        yield f"The same in both: {', '.join(found.shared)}."
    if found.measured:
        yield from _measured(found)
    if found.learnt:
        yield from _learnt(found)
    if found.changed:
        yield from _changed(found)
    yield ""
    yield f"Took: {one} {_took(found, 0)}; {other} {_took(found, 1)}."


def _verdict(found: RunComparison) -> str:
    """In a sentence, what one wants to know."""
    if not found.configured and not found.changed and not found.measured and not found.learnt:
        return "the same."
    if not found.tested:
        return "they differ; nothing was measured in both that could tell whether it matters."
    if not found.beyond_noise:
        return f"of {len(found.tested)} differences that were measured none is beyond noise."
    told = ", ".join(
        f"{f'{one.model} {one.metric}'.strip()} {with_interval(one.difference)}"
        for one in found.beyond_noise[:3]
        if one.difference
    )
    return f"{len(found.beyond_noise)} of {len(found.tested)} differences that were measured are beyond noise: {told}."


def _measured(found: RunComparison) -> Iterator[str]:
    yield ""
    yield f"Measured ({found.second} minus {found.first}, with 95 % intervals):"
    rows = [("stage", "model", "metric", found.first, found.second, "difference", "")]
    rows += [_row(one) for one in found.measured]
    yield from _table(rows)
    paired = sum(1 for one in found.tested if one.difference and one.difference.paired)
    yield f"  {paired} of {len(found.tested)} taken prompt by prompt. The intervals are over prompts: another seed of training may move"
    yield "  more than they say (`flywheel sweep --seeds 3`)."
    if len(found.tested) >= 5:
        yield f"  Of {len(found.tested)} differences that are none, {len(found.tested) / 20:.1f} look beyond noise by chance."


def _row(one: MetricPair) -> tuple[str, ...]:
    if one.same_answers:
        return (
            one.stage,
            one.model,
            one.metric,
            number(one.first),
            number(one.second),
            "same answers",
            "moved with others",
        )
    told = with_interval(one.difference) if one.difference else "no interval"
    beyond = ("beyond noise" if one.difference.beyond_noise else "within noise") if one.difference else ""
    paired = "" if one.difference is None or one.difference.paired else ", not paired"
    return one.stage, one.model, one.metric, number(one.first), number(one.second), told, beyond + paired


def _learnt(found: RunComparison) -> Iterator[str]:
    yield ""
    yield "Learnt (a curve each, from its first step to its last, and where it ends; one seed each, so no interval):"
    rows: list[tuple[str, ...]] = [("stage", "metric", found.first, "", found.second, "")]
    for one in found.learnt:
        if any(len(points) > 1 for points in (one.first, one.second)):
            rows.append((one.stage, one.metric, *_curves(one)))
    yield from _table(rows)


def _curves(one: CurvePair) -> Iterator[str]:
    """Both on one scale."""
    values = [value for points in (one.first, one.second) for _, value in points if math.isfinite(value)]
    for points in (one.first, one.second):
        yield sparkline([value for _, value in points], min(values, default=0.0), max(values, default=0.0))
        yield number(points[-1][1]) if points else "–"


def sparkline(values: list[float], low: float, high: float) -> str:
    """Values over steps as blocks of eight heights, each the mean of its share of the steps."""
    kept = [value for value in values if math.isfinite(value)]
    count = min(len(kept), WIDTH)
    shares = [kept[i * len(kept) // count : (i + 1) * len(kept) // count] for i in range(count)]
    means = [sum(share) / len(share) for share in shares]
    if high <= low:
        return BLOCKS[3] * count
    return "".join(BLOCKS[min(7, max(0, int((mean - low) / (high - low) * 8)))] for mean in means)


def _changed(found: RunComparison) -> Iterator[str]:
    yield ""
    yield "Rows:"
    for one in found.changed:
        yield f"  {one.stage}: {_counts(one, found)}"
        for asked, first, second in one.examples:
            if asked:
                yield f"      {shorten(asked, 110)}"
            yield from (
                f"        {name}: {shorten(text, 110)}"
                for name, text in ((found.first, first), (found.second, second))
                if text
            )


def _counts(one: Changed, found: RunComparison) -> str:
    if not one.only_first and not one.only_second:
        return f"the same {one.same:,} rows, in files of their own"
    told = f"{one.same:,} in both, {one.only_first:,} only in {found.first}, {one.only_second:,} only in {found.second}"
    return told + (
        f"; of {one.matched:,} that belong to each other {one.other:,} say something else" if one.matched else ""
    )


def _took(found: RunComparison, which: int) -> str:
    spent = in_words(found.spent[which]) if found.spent[which] else ""
    return f"{found.seconds[which]:,.0f} s of work{f', {spent}' if spent else ''}"


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()


def as_json(found: RunComparison) -> dict[str, Any]:
    """The same for machines."""
    from dataclasses import asdict

    told = asdict(found)
    for one, entry in zip(found.measured, told["measured"], strict=True):
        if one.difference:
            entry["difference"]["beyond_noise"] = one.difference.beyond_noise
    return told
