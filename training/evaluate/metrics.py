"""The names of what an evaluation measures."""

from __future__ import annotations

from collections.abc import Sequence

# What is measured of each answer, beside the checks.
MEASURED = ("reward", "kl", "length")
# What rows hold and the table shows in another form.
BEHIND = ("sample", "utility", "nats", "bytes", "tokens")


def columns(checks: Sequence[str], cutoffs: Sequence[int] = ()) -> list[str]:
    """Every metric that a table may hold, without the ends of intervals.

    Args:
        cutoffs: the k of recall at k.
    """
    found = [*(f"recall_at_{k}" for k in cutoffs), "mrr", "ndcg_at_10"]
    gains = [f"{name}_gain" for name in found]
    rates = ("gold_win_rate", "length_controlled_win_rate", "bradley_terry")
    return [*checks, *rates, *MEASURED, "kl_bound", "bits_per_byte", "perplexity", "n", *found, *gains]
