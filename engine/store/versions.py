"""Files that several may want to change at once: each write says which version it replaces, and fails if that is not there any more.

On S3 the server decides (`If-None-Match: *`, `If-Match` with an ETag). Where files have no versions (other object stores), what
is there is compared just before it is written: a lost race of milliseconds stays possible, `safe` says so.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

from engine.store.files import StoreFiles

LARGEST_PUT = 5 << 30  # bytes; beyond, a file goes in parts
Version = str  # an ETag, or a digest of the content


def safe(store: StoreFiles) -> bool:
    """Whether the store itself refuses a write that comes too late."""
    return "s3" in _protocols(store)


def read_version(store: StoreFiles, *parts: str) -> tuple[bytes, Version] | None:
    """A file and its version; None if there is no such file."""
    try:
        if not safe(store):
            data = store.read(*parts)
            return data, hashlib.sha256(data).hexdigest()
        got = store.fs.call_s3("get_object", **_place(store, *parts))
        return _body(store, got), str(got["ETag"])
    except FileNotFoundError:
        return None


def put_version(store: StoreFiles, data: bytes, version: Version | None, *parts: str) -> Version | None:
    """Write a file in place of that version (None: where there is none yet), whole or not at all.

    Returns:
        its version now; None if another has been there before, and nothing was written.
    """
    if not safe(store):
        there = read_version(store, *parts)
        if (there[1] if there else None) != version:
            return None
        return store.put(data, *parts)
    store.fs.invalidate_cache(store.path(*parts))  # of listings
    condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
    try:
        return str(store.fs.call_s3("put_object", Body=data, **condition, **_place(store, *parts))["ETag"])
    except OSError as error:
        if _refused(error):
            return None
        raise


def put_file_version(store: StoreFiles, source: Path, version: Version | None, *parts: str) -> bool:
    """`put_version` on S3 for a local file; False if another has been there before."""
    path = store.path(*parts)
    try:
        if version is None:
            store.fs.put_file(str(source), path, mode="create")
        elif source.stat().st_size > LARGEST_PUT:
            store.fs.rm_file(path)
            store.fs.put_file(str(source), path, mode="create")
        else:
            store.fs.invalidate_cache(path)
            with source.open("rb") as body:
                store.fs.call_s3("put_object", Body=body, IfMatch=version, **_place(store, *parts))
        return True
    except OSError as error:
        if _refused(error):
            return False
        raise


def etag(store: StoreFiles, *parts: str) -> Version | None:
    """The version of a file on S3, without reading it; None if there is none."""
    try:
        return str(store.fs.call_s3("head_object", **_place(store, *parts))["ETag"])
    except FileNotFoundError:
        return None


def _refused(error: BaseException) -> bool:
    """412: another version is there, or 404: none is any more; 409: another is being written right now."""
    response: Any = getattr(error.__cause__ or error, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return isinstance(error, (FileExistsError, FileNotFoundError)) or status in (404, 409, 412)


def _place(store: StoreFiles, *parts: str) -> dict[str, str]:
    bucket, key, _ = store.fs.split_path(store.path(*parts))
    return {"Bucket": bucket, "Key": key}


def _body(store: StoreFiles, got: Any) -> bytes:
    from fsspec.asyn import sync

    async def read() -> bytes:
        async with got["Body"] as stream:
            return await stream.read()

    return cast(bytes, sync(store.fs.loop, read))


def _protocols(store: StoreFiles) -> tuple[str, ...]:
    protocol: Any = store.fs.protocol
    return protocol if isinstance(protocol, tuple) else (protocol,)
