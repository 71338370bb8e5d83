"""What was spent on asking models: tokens and money, of one artifact and of many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from engine.stage.job import AMOUNTS
from engine.store.artifact import Artifact

Spending = Mapping[str, float]


def spending(artifacts: Iterable[Artifact]) -> Spending:
    """The sum over artifacts, each counted once: `tokens_in`, `tokens_out`, `cost`; empty if nobody was asked."""
    told = [
        one for a in {a.id: a for a in artifacts}.values() for one in a.manifest["timings"].get("spent", {}).values()
    ]
    total = {name: sum(one.get(name, 0) for one in told) for name in AMOUNTS}
    return total if any(total.values()) else {}


def in_words(spent: Spending) -> str:
    """One line; the money only where there are prices."""
    told = f"{spent['tokens_in']:,.0f} tokens in, {spent['tokens_out']:,.0f} out"
    return told + (f", cost {spent['cost']:,.2f}" if spent["cost"] else "")
