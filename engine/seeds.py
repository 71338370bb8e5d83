"""Randomness is derived, never ambient.

A row's seed is a digest of the stage's seed and the row's identity, so a result depends neither on order, nor on
batch, nor on how the work was cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")


def derive(*parts: str | int) -> int:
    """Digest the parts to a seed in [0, 2**63). Order matters; `("a", "b")` and `("ab",)` differ."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        encoded = str(part).encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return int.from_bytes(digest.digest(), "little") >> 1


def generator(*parts: str | int) -> np.random.Generator:
    """A NumPy generator (PCG64) for these parts."""
    import numpy as np  # configurations import this file for `derive` alone

    return np.random.Generator(np.random.PCG64(derive(*parts)))


def shuffled(items: Sequence[T], *parts: str | int) -> list[T]:
    """The items in an order that depends on the parts alone."""
    return [items[i] for i in generator(*parts).permutation(len(items))]
