"""MinHash signatures and band keys (see `pipelines.dedup.minhash`)."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipelines.kernels.word_hashes import COMBINE, MULTIPLIER, U64, hash_shingles, hash_words, mix

U32 = np.uint32


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
    lower: Any, starts: Any, stops: Any, words: Any, hashes: Any, short: Any,
    keys: Any, counts: Any, signatures: Any, bands: Any,
) -> None:  # fmt: skip
    """For each text: a 128-bit digest of its words, the number of its shingles, its signature and its band keys.

    Args:
        lower, starts, stops, words, hashes, short: room for the longest text.
        keys: (texts, 2) uint64, out.
        counts: (texts,) int32, out: shingles, repeats included.
        signatures: (texts, permutations) uint32, out; left alone for texts of one shingle or none.
        bands: (bands, texts) uint64, out; likewise.
    """
    for t in range(len(counts)):
        count = hash_words(data, offsets[t], offsets[t + 1], (lower, starts, stops), words)
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
