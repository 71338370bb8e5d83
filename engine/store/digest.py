"""Digests: what files and configurations are told apart by."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from engine.store.known_digests import digest_of


def canonical(value: Any) -> str:
    """JSON with one spelling: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON in UTF-8; halves of surrogate pairs, which UTF-8 has no bytes for, as if it had."""
    return hashlib.sha256(canonical(value).encode("utf-8", "surrogatepass")).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, worked out once a run."""
    return digest_of(path)


def digest_bytes(path: Path) -> str:
    """SHA-256 of a file's bytes, whatever was worked out before."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder, by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {file.relative_to(folder).as_posix(): digest_file(file) for file in files}
