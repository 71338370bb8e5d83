"""What runs there are, and what each name stood for from time to time: what `flywheel runs` prints."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from engine.errors import UserError, nearest
from engine.plan.identity import differences
from engine.store import run_records
from engine.store.store import Store
from engine.view.spending import in_words, spending
from engine.view.status import date, times_of


def run_named(store: Store, name: str) -> str:
    """The record that a name or a tag means.

    Raises:
        UserError: there is none.
    """
    names = run_records.names(store)
    if name in names:
        return name
    if found := run_records.tagged(store, name):
        return found
    tags = [tag for one in names for tag in (run_records.read(store, one) or {}).get(run_records.TAGS, [])]
    raise UserError(
        f"no run `{name}` in the store {store.url}.{nearest(name, [*names, *tags])} `flywheel runs` lists them."
    )


def runs(store: Store, run: str | None = None) -> list[dict[str, Any]]:
    """Each run, or all that one name stood for, the first first: `run`, `tags`, `recipe`, `stages` (how many), when it `started` and
    `finished`, when it was `replaced`, what it `spent`, how many things it stood for `earlier`; and in a history, what is other than before
    (`changed`).
    """
    if run is None:
        names = store.runs()
    else:
        match = run_records.STATE.fullmatch(run)
        now = match["run"] if match else run
        names = [*run_records.states(store, now), *([now] if now in run_records.names(store) else [])]
    rows = [_row(store, name) for name in names]
    for before, row in itertools.pairwise(rows) if run is not None else ():
        row["changed"] = changes(store, before["run"], row["run"])
    return rows


def changes(store: Store, before: str, after: str) -> dict[str, list[str]]:
    """Stage -> what of its own configuration, code or files is other in one record than in another; stages that only one of them has."""
    was, now = ((run_records.read(store, name) or {}).get("stages", {}) for name in (before, after))
    told: dict[str, list[str]] = {}
    for stage in dict.fromkeys([*was, *now]):
        if stage not in was or stage not in now:
            told[stage] = [f"only in {after if stage in now else before}"]
        elif "identity" in was[stage] and "identity" in now[stage]:
            told[stage] = differences(was[stage]["identity"], now[stage]["identity"])
    return {stage: lines for stage, lines in told.items() if lines}


def _row(store: Store, name: str) -> dict[str, Any]:
    record = run_records.read(store, name) or {}
    artifacts = [found for folder in run_records.made(record).values() if (found := store.get(folder))]
    times = [times_of(artifact) for artifact in artifacts]
    return {
        "run": name,
        "tags": record.get(run_records.TAGS, []),
        "recipe": record.get("recipe", ""),
        "stages": len(record.get("stages", {})),
        "started": min((start for start, _ in times if start), default=None),
        "finished": max((end for _, end in times if end), default=None),
        "replaced": record.get(run_records.REPLACED),
        "spent": spending(artifacts),
        "earlier": len(run_records.states(store, name)),
        "damaged": store.damage.get(f"runs/{name}.json"),
    }


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line a run, and below it what is other than before."""
    width = max([len(row["run"]) for row in rows] + [4])
    for row in rows:
        told = [
            f"{row['stages']} {'stage' if row['stages'] == 1 else 'stages'}",
            f"of {row['recipe']}" if row["recipe"] else "",
            f"tagged {', '.join(row['tags'])}" if row["tags"] else "",
            in_words(row["spent"]) if row["spent"] else "",
            f"replaced {date(row['replaced'])}" if row["replaced"] else "",
            f"{row['earlier']} earlier: flywheel runs {row['run']}" if row["earlier"] and "changed" not in row else "",
            row["damaged"] or "",
        ]
        yield f"{row['run']:<{width}}  {date(row['finished']):<16}  {'; '.join(filter(None, told))}"
        for stage, changed in row.get("changed", {}).items():
            yield from (f"{'':<{width}}    {stage}: {line}" for line in changed)


def add_tags(store: Store, name: str, tags: list[str], remove: bool) -> str:
    """Give a record tags, or take them away. A tag stays where it is until it is taken away. Returns the record's name.

    Raises:
        UserError: another has the tag, or a run has that name.
    """
    run = run_named(store, name)
    for tag in tags:
        if told := run_records.misnamed(tag):
            raise UserError(f"a tag can't be called so: {told}")
        holder = run_records.tagged(store, tag)
        if not remove and tag in run_records.names(store):
            raise UserError(f"`{tag}` is the name of a run, which a tag can't be.")
        if not remove and holder not in (None, run):
            raise UserError(f"`{tag}` is a tag of {holder}. Take it away first: flywheel tag {holder} {tag} --remove")
        if remove and holder != run:
            raise UserError(f"{run} has no tag `{tag}`.")
    run_records.tag(store, run, tags, remove)
    return run
