"""MinHash signatures (Broder 1997) and their banding for a wanted threshold and recall.

Signatures are those of `datasketch.MinHash(scheme="affine32")` on the upper 32 bits of the shingles' hashes: the k-th
value is min over shingles of a_k * fmix32(h) + b_k mod 2**32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.kernels.compiled import kernel
from pipelines.texts.columns import Array, Texts
from pipelines.texts.forms import word_forms
from pipelines.texts.shingles import make_room

_sign = kernel("pipelines.kernels.hash_minima", "sign")
_band_keys = kernel("pipelines.kernels.hash_minima", "band_keys")


@dataclass(frozen=True)
class Banding:
    """Two texts are compared if all `rows` values of one of `bands` bands of their signatures agree."""

    bands: int
    rows: int

    @property
    def permutations(self) -> int:
        return self.bands * self.rows

    def chance(self, jaccard: Any) -> Any:
        """The probability that a pair of this similarity is compared: 1 - (1 - J**rows)**bands."""
        return 1 - (1 - np.asarray(jaccard, float) ** self.rows) ** self.bands

    def recall(self, threshold: float) -> float:
        """The expected share of pairs found, for pairs with similarities spread evenly over [threshold, 1]."""
        return float(self.chance(np.linspace(threshold, 1, 1001)).mean())

    def keys(self, signatures: Array, band: int) -> Array:
        """The key of one band of each signature, uint64: what the kernel `sign` writes to `bands`."""
        made = np.empty(len(signatures), np.uint64)
        _band_keys(np.ascontiguousarray(signatures), band, self.rows, made)
        return made

    def curve(self) -> list[tuple[float, float]]:
        """The S-curve: (J, probability) at 0, .05, ..., 1."""
        return [(round(j, 2), round(float(self.chance(j)), 4)) for j in np.linspace(0, 1, 21)]


def choose_banding(threshold: float, recall: float, permutations: int) -> Banding:
    """The steepest curve that finds this share of pairs with at most this many permutations.

    More rows a band mean fewer pairs compared in vain; for each number of rows the fewest bands that reach the recall
    are taken. If no banding reaches it, the one with the highest recall.
    """
    best = Banding(permutations, 1)
    for rows in range(1, permutations + 1):
        for bands in range(1, permutations // rows + 1):
            if Banding(bands, rows).recall(threshold) >= recall:
                best = Banding(bands, rows)
                break
        else:
            break
    return best


def permutations(count: int) -> tuple[Array, Array]:
    """(a, b), uint32 each: those of `datasketch.MinHash(count, seed=1, scheme="affine32")`."""
    state = np.random.RandomState(1)
    a = state.randint(0, 1 << 31, count, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return a, state.randint(0, 1 << 32, count, dtype=np.uint32)


@dataclass(frozen=True)
class SignedTexts:
    """What the kernel `sign` writes for some texts (see there for shapes)."""

    keys: Array
    counts: Array
    signatures: Array
    bands: Array


def sign_texts(texts: Texts, n: int, banding: Banding, a: Array, b: Array) -> SignedTexts:
    """Signatures of all texts of a column (see `pipelines.kernels.hash_minima.sign`)."""
    texts = word_forms(texts).texts
    count, longest = len(texts), texts.longest()
    made = SignedTexts(
        np.zeros((count, 2), np.uint64),
        np.zeros(count, np.int32),
        np.zeros((count, banding.permutations), np.uint32),
        np.zeros((banding.bands, count), np.uint64),
    )
    _sign(
        texts.data, texts.offsets, n, a, b, banding.rows,
        *make_room(longest), np.empty(longest + 1, np.uint64), np.empty(longest + 1, np.uint32),
        made.keys, made.counts, made.signatures, made.bands,
    )  # fmt: skip
    return made
