"""What was spent on asking models: tokens and money, of one artifact and of many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from engine.stage.job import AMOUNTS
from engine.store.artifact import Artifact

Spending = Mapping[str, float]


def spending(artifacts: Iterable[Artifact]) -> Spending:
    """The sum over artifacts, each counted once: `tokens_in`, `tokens_out`, `cost`; empty if nobody was asked."""
    once = {artifact.id: artifact for artifact in artifacts}.values()
    told = [spent for artifact in once for spent in by_answerer(artifact).values()]
    total = {name: sum(one.get(name, 0) for one in told) for name in AMOUNTS}
    return total if any(total.values()) else {}


def by_answerer(artifact: Artifact) -> dict[str, Spending]:
    """Who answered -> what it took. A plugin may note there what it likes; what is no such table is left out."""
    noted: Any = artifact.manifest["timings"].get("spent")
    return {who: spent for who, spent in noted.items() if _is_spent(spent)} if isinstance(noted, dict) else {}


def _is_spent(value: Any) -> bool:
    if not isinstance(value, dict) or "tokens_in" not in value:
        return False
    return all(isinstance(value.get(name, 0), (int, float)) for name in AMOUNTS)


def in_words(spent: Spending) -> str:
    """One line; the money only where there are prices."""
    told = f"{spent['tokens_in']:,.0f} tokens in, {spent.get('tokens_out', 0):,.0f} out"
    return told + (f", cost {cost:,.2f}" if (cost := spent.get("cost", 0)) else "")
