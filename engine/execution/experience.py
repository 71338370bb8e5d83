"""What stages took before on this machine, and so what those of a plan will take: time, memory and, with a price, money.

Of the finished artifacts of a stage's kind, those count whose configuration is nearest. Time is taken to grow with the amount of work: the
rows that come in, as often as `epochs` and `iterations` say, or the `steps` where those are given. It is an estimate, and says what of.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from engine.execution.threads import cores
from engine.plan.inputs import External
from engine.plan.plan import Planned
from engine.store.artifact import Artifact
from engine.store.store import Store

LOOKED_AT = 40  # finished artifacts of a kind
TIMES = ("epochs", "iterations")  # how often a trainer goes over its rows


@dataclass(frozen=True)
class Observation:
    """What one artifact took.

    Attributes:
        amount: of work; None where it is not known any more.
        differs: fields of its configuration that are others than the planned stage's.
    """

    artifact: str
    rows: int | None
    amount: float | None
    wall_s: float
    peak_rss_mb: float
    differs: tuple[str, ...]


@dataclass(frozen=True)
class Estimate:
    """What a stage will take, by what others took.

    Attributes:
        rows: that will come out.
        scaled: whether the amount of work is known, of this stage and of those before.
        like: the artifact that it was taken from, the nearest one.
        differs: where that one's configuration is another.
    """

    wall_s: float
    peak_rss_mb: float
    rows: int | None
    scaled: bool
    like: str
    differs: tuple[str, ...]


def estimates(planned: list[Planned], store: Store) -> dict[str, Estimate]:
    """By name, of the stages that will run; not of those whose kind was never run here."""
    folders = sorted(store.folders())
    found: dict[str, Estimate] = {}
    rows = {stage.name: stage.rows for stage in planned}
    for stage in planned:
        if stage.cached:
            continue
        taken = list(_taken(stage, store, [name for name in folders if name.rpartition("-")[0] == stage.step.kind]))
        if not taken:
            continue
        least = min(len(one.differs) for one in taken)
        nearest = [one for one in taken if len(one.differs) == least]
        given = _rows_in(stage, rows, store)
        found[stage.name] = told = _estimate(_amount(stage.step.config.model_dump(), given), given, nearest)
        rows[stage.name] = rows[stage.name] if rows[stage.name] is not None else told.rows
    return found


def _estimate(amount: float | None, given: int | None, nearest: list[Observation]) -> Estimate:
    known = [one for one in nearest if one.amount]
    if not amount or not known:
        longest = max(nearest, key=lambda one: one.wall_s)
        return Estimate(longest.wall_s, longest.peak_rss_mb, longest.rows, False, longest.artifact, longest.differs)
    like = min(known, key=lambda one: abs(cast(float, one.amount) - amount))
    start, each = _line([(cast(float, one.amount), one.wall_s) for one in known])
    rows = round(like.rows * amount / cast(float, like.amount)) if like.rows is not None and given is not None else None
    return Estimate(start + each * amount, like.peak_rss_mb, rows, True, like.artifact, like.differs)


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """(start, each) of `seconds = start + each * amount` by least squares; neither is negative."""
    amounts, seconds = zip(*points, strict=True)
    middle, mean = sum(amounts) / len(points), sum(seconds) / len(points)
    spread = sum((amount - middle) ** 2 for amount in amounts)
    if spread == 0:
        return 0.0, mean / middle
    each = sum((amount - middle) * (s - mean) for amount, s in points) / spread
    if each < 0:
        return mean, 0.0
    if (start := mean - each * middle) < 0:
        return 0.0, sum(a * s for a, s in points) / sum(a * a for a in amounts)
    return start, each


def _taken(stage: Planned, store: Store, folders: list[str]) -> Iterator[Observation]:
    config = cast(dict[str, Any], stage.identity["config"])
    machine = f"{platform.machine()}, {cores()} cores"
    for name in folders[-LOOKED_AT:]:
        made = store.get(name)
        timings = made.manifest.get("timings", {}) if made else {}
        if made is None or timings.get("machine") != machine or "wall_s" not in timings:
            continue
        was = cast(dict[str, Any], made.manifest.get("stage", {}).get("config", {}))
        differs = sorted(field for field in config if field != "seed" and config[field] != was.get(field))
        amount = _amount(was, _rows_then(made, store))
        yield Observation(name, made.rows, amount, timings["wall_s"], timings.get("peak_rss_mb", 0.0), tuple(differs))


def _amount(config: dict[str, Any], rows: int | None) -> float | None:
    """Of work, in a unit of the kind's own."""
    if config.get("steps"):
        return float(config["steps"])
    if rows is None:
        return None
    amount = float(rows)
    for field in TIMES:
        amount *= config.get(field) or 1
    return amount


def _rows_in(stage: Planned, rows: dict[str, int | None], store: Store) -> int | None:
    """Rows that come in; None if that is not known of one of the inputs."""
    total = 0
    for _, source in (pair for given in stage.inputs.values() for pair in given):
        if isinstance(source, External):
            found = store.get(source.folder)
            count = found.rows if found else None
        else:
            count = rows[source.name]
        if count is None:
            return None
        total += count
    return total


def _rows_then(made: Artifact, store: Store) -> int | None:
    total = 0
    for entry in (one for given in made.manifest.get("inputs", {}).values() for one in given):
        source = store.get(entry["artifact"])
        if source is None:
            return None
        total += source.rows
    return total


def in_words(estimate: Estimate, price: float | None = None) -> str:
    """
    Args:
        price: of an hour.
    """
    money = f", {estimate.wall_s / 3600 * price:,.2f} at {price:g} an hour" if price else ""
    memory = f", up to {estimate.peak_rss_mb / 1024:.1f} GiB"
    size = "" if estimate.scaled else " whatever its size"
    other = f", with another {', '.join(f'`{field}`' for field in estimate.differs[:4])}" if estimate.differs else ""
    more = " and more" if len(estimate.differs) > 4 else ""
    return f"about {duration(estimate.wall_s)}{memory}{money} (by {estimate.like}{size}{other}{more})"


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
