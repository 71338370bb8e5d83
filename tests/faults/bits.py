"""Bits that flip, files that are cut, emptied or gone, in a finished store."""

from __future__ import annotations

from tests.faults.ground import Ground
from tests.faults.outcome import Outcome  # noqa: F401


def faults(ground: Ground, seed: int) -> list:
    return []
