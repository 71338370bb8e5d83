"""The seal of a checkpoint: the digests of its files, written beside them last. A folder without a seal, or with a file that
its seal does not fit, is no checkpoint.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import xxhash

from engine.store.whole_file import whole_file

SEAL = "sealed.json"


def seal(checkpoint: Path) -> None:
    """Write the digests of a finished checkpoint's files beside them, by a rename; from now on it counts."""
    digests: dict[str, str] = {}
    for file in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        digests[file.relative_to(checkpoint).as_posix()] = _digest(file)
    with whole_file(checkpoint / SEAL) as partial:
        partial.write_text(json.dumps(digests))


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was sealed and each of its files is still as it was."""
    try:
        digests: dict[str, str] = json.loads((checkpoint / SEAL).read_text())
        return bool(digests) and all(_digest(checkpoint / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _digest(file: Path) -> str:
    """XXH3-128 of a file's bytes."""
    digest = xxhash.xxh3_128()
    with file.open("rb") as handle:
        while block := handle.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
