"""MinHash signatures (Broder 1997) and their banding for a wanted threshold and recall.

Signatures are those of `datasketch.MinHash(scheme="affine32")` on the upper 32 bits of the shingles' hashes: the k-th
value is min over shingles of a_k * fmix32(h) + b_k mod 2**32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from pipelines.shingles import COMBINE, MULTIPLIER, U64, Array, Texts, hash_shingles, hash_words, make_room, mix

U32 = np.uint32


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
        """The key of one band of each signature, uint64: what `sign` writes to `bands`."""
        made = np.empty(len(signatures), np.uint64)
        band_keys(signatures, band, self.rows, made)
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


@numba.njit(cache=True, nogil=True)
def signature(hashes: Any, a: Any, b: Any, out: Any) -> None:
    """MinHash of 32-bit hashes. Changes `hashes`.

    Four hashes at a time against all permutations, so that the signature stays in vector registers' reach.
    """
    for i in range(len(hashes)):
        x = hashes[i]  # numba computes in 64 bits: cut back to 32 after each product
        x = U32((x ^ (x >> U32(16))) * U32(0x85EBCA6B))
        x = U32((x ^ (x >> U32(13))) * U32(0xC2B2AE35))
        hashes[i] = x ^ (x >> U32(16))
    for k in range(len(a)):
        out[k] = U32(0xFFFFFFFF)
    i = 0
    while i + 4 <= len(hashes):
        h0, h1, h2, h3 = hashes[i], hashes[i + 1], hashes[i + 2], hashes[i + 3]
        for k in range(len(a)):
            x = min(U32(a[k] * h0 + b[k]), U32(a[k] * h1 + b[k]))
            y = min(U32(a[k] * h2 + b[k]), U32(a[k] * h3 + b[k]))
            out[k] = min(out[k], min(x, y))
        i += 4
    while i < len(hashes):
        h0 = hashes[i]
        for k in range(len(a)):
            out[k] = min(out[k], U32(a[k] * h0 + b[k]))
        i += 1


@numba.njit(cache=True, nogil=True)
def band_key(values: Any, band: int, rows: int) -> Any:
    """64 bits of the values of one band of a signature."""
    key = U64(band)
    for k in range(band * rows, (band + 1) * rows):
        key = mix(key ^ U64(values[k]))
    return key


@numba.njit(cache=True, nogil=True)
def band_keys(signatures: Any, band: int, rows: int, out: Any) -> None:
    for i in range(len(signatures)):
        out[i] = band_key(signatures[i], band, rows)


@numba.njit(cache=True, nogil=True)
def sign(
    data: Any, offsets: Any, n: int, a: Any, b: Any, rows: int,
    keys: Any, counts: Any, signatures: Any, bands: Any,
) -> None:  # fmt: skip
    """For each text: a 128-bit digest of its words, the number of its shingles, its signature and its band keys.

    Args:
        keys: (texts, 2) uint64, out.
        counts: (texts,) int32, out: shingles, repeats included.
        signatures: (texts, permutations) uint32, out; left alone for texts of one shingle or none.
        bands: (bands, texts) uint64, out; likewise.
    """
    longest = 0
    for t in range(len(counts)):
        longest = max(longest, offsets[t + 1] - offsets[t])
    words, room = np.empty(longest + 1, np.uint64), make_room(longest)
    hashes = np.empty(longest + 1, np.uint64)
    short = np.empty(longest + 1, np.uint32)
    for t in range(len(counts)):
        count = hash_words(data, offsets[t], offsets[t + 1], room, words)
        total = hash_shingles(words, count, n, hashes)
        x, y = U64(count), U64(0)  # sums over words and their places, so that they are computed side by side
        for i in range(count):
            x += mix(words[i] + U64(i) * MULTIPLIER)
            y += mix(words[i] ^ U64(i) * COMBINE)
        keys[t, 0], keys[t, 1] = x, y
        counts[t] = total
        if total < 2:
            continue
        for i in range(total):
            short[i] = U32(hashes[i] >> U64(32))
        signature(short[:total], a, b, signatures[t])
        for band in range(len(bands)):
            bands[band, t] = band_key(signatures[t], band, rows)


@dataclass(frozen=True)
class Signed:
    """What `sign` found for some texts."""

    keys: Array
    counts: Array
    signatures: Array
    bands: Array


def sign_texts(texts: Texts, n: int, banding: Banding, a: Array, b: Array) -> Signed:
    """Signatures of all texts of a column (see `sign`)."""
    count = len(texts)
    made = Signed(
        np.zeros((count, 2), np.uint64),
        np.zeros(count, np.int32),
        np.zeros((count, banding.permutations), np.uint32),
        np.zeros((banding.bands, count), np.uint64),
    )
    sign(texts.data, texts.offsets, n, a, b, banding.rows, made.keys, made.counts, made.signatures, made.bands)
    return made
