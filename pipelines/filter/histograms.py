"""How statistics of kept and of removed documents are spread: fixed bins, so that counts of parts add up."""

from __future__ import annotations

from typing import Any

import numpy as np

# From 0, then doubling: what counts something. In twentieths from 0 to 1: what is a share or a score.
COUNTS = (0.0, *(float(2**k) for k in range(31)))
SHARES = tuple(round(0.05 * k, 2) for k in range(21))
LENGTHS = tuple(float(k) for k in range(21))
EDGES = {
    **dict.fromkeys(
        ("words", "characters", "lines", "paragraphs", "sentences", "curly_brackets", "lorem_ipsum"), COUNTS
    ),
    **dict.fromkeys(("mean_word_length", "stop_words"), LENGTHS),
}


class Histograms:
    """Statistic -> how many kept and how many removed documents have a value in each bin.

    Bin i holds `edges[i] <= value < edges[i + 1]`; values beyond the last edge are counted in the last bin.
    """

    def __init__(self) -> None:
        self.counts: dict[str, np.ndarray[Any, Any]] = {}  # (2, bins) int64: kept, removed

    def add(self, name: str, values: np.ndarray[Any, Any], stays: np.ndarray[Any, Any]) -> None:
        """Count values (not-a-number is none) of documents that stay or don't."""
        edges = np.array(EDGES.get(name, SHARES))
        known = ~np.isnan(values.astype(float))
        bins = np.clip(np.searchsorted(edges, values[known], "right") - 1, 0, len(edges) - 2)
        counted = [np.bincount(bins[side], minlength=len(edges) - 1) for side in (stays[known], ~stays[known])]
        self.counts[name] = self.counts.get(name, 0) + np.stack(counted)

    def merge(self, other: Histograms) -> None:
        for name, counts in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + counts

    def to_json(self, bounds: dict[str, tuple[float, float]]) -> dict[str, Any]:
        """As `engine.view.report.page` draws them; `bounds` are the values outside of which a rule removes."""
        return {
            name: {
                "edges": list(EDGES.get(name, SHARES)),
                "kept": counts[0].tolist(),
                "removed": counts[1].tolist(),
                "bounds": [float(b) if np.isfinite(b) else None for b in bounds.get(name, (-np.inf, np.inf))],
            }
            for name, counts in self.counts.items()
        }

    @staticmethod
    def from_json(known: dict[str, Any]) -> Histograms:
        made = Histograms()
        made.counts = {name: np.array([entry["kept"], entry["removed"]]) for name, entry in known.items()}
        return made
