"""Writes into an artifact in a store that can't lock or rename: what the one who lost the lease has under way changes nothing."""

from __future__ import annotations

from pathlib import Path

from engine.store.artifact import TAKEN_OVER
from engine.store.files import StoreFiles
from engine.store.holder import Superseded, superseded
from engine.store.known_digests import digest_of, note_object
from engine.store.versions import PART, Version, etag, put_file_version, put_version, read_version, safe

BAR = f'{{"{TAKEN_OVER}": '.encode()


def is_bar(manifest: bytes) -> bool:
    """Whether this is no manifest, but what stands in its place since somebody took over."""
    return manifest.startswith(BAR)


def put_leased(store: StoreFiles, data: bytes, *, once: bool, place: tuple[str, ...], sha256: str) -> str:
    """Write a file of an artifact where nothing can be renamed: only in place of what was there when the lease was looked at, so
    that a write that was on its way while another took over changes nothing.

    Args:
        once: there may be none yet.
        sha256: of the data.

    Returns:
        its SHA-256.

    Raises:
        Superseded: another has the lease, or was faster.
    """
    if not safe(store):
        store.fence(*place)
        return StoreFiles.put(store, data, *place, sha256=sha256)
    version: Version | None = None
    for _ in range(5):
        store.fence(*place)
        now = put_version(store, data, version, *place, sha256=sha256)
        there = None if now else read_version(store, *place)  # a version of before, or ours whose answer got lost
        if there and there.data == data:
            now = there.version
        if now:
            note_object(store.path(*place), now, sha256)
            return sha256
        if once and there and not is_bar(there.data):
            break
        version = there.version if there else None
    raise Superseded(superseded(place[1], None))


def put_file_leased(store: StoreFiles, source: Path, *place: str) -> None:
    """`put_leased` for a local file of any size.

    Raises:
        Superseded: another has the lease, or was faster.
    """
    if not safe(store):
        store.fence(*place)
        store.fs.put_file(str(source), store.path(*place))
        return
    large, version = source.stat().st_size > PART, None
    for attempt in range(5):
        if large or attempt:  # a small one is tried at once
            version = etag(store, *place)
        store.fence(*place)
        if now := put_file_version(store, source, version, *place, sha256=digest_of(source)):
            note_object(store.path(*place), now, digest_of(source))
            return
    raise Superseded(superseded(place[1], None))
