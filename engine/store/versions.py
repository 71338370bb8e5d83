"""Files that several may want to change at once: each write says which version it replaces, and fails if that is not there any more.

On S3 the server decides (`If-None-Match: *`, `If-Match` with an ETag). Where files have no versions (other object stores), what
is there is compared just before it is written: a lost race of milliseconds stays possible, `safe` says so.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, cast

from engine.store.files import StoreFiles

LARGEST_PUT = 5 << 30  # bytes; beyond, a file goes in parts
PART, MOST_PARTS, AT_ONCE = 16 << 20, 10_000, 4
STATED = "sha256"  # of an object's metadata
Version = str  # an ETag, or a digest of the content


@dataclass(frozen=True)
class Versioned:
    """A file as it was read.

    Attributes:
        age_s: since it was written, by the server's clock; 0 where it does not say.
    """

    data: bytes
    version: Version
    age_s: float = field(default=0.0, compare=False)


def safe(store: StoreFiles) -> bool:
    """Whether the store itself refuses a write that comes too late."""
    return store.s3


def read_version(store: StoreFiles, *parts: str) -> Versioned | None:
    """A file and its version; None if there is no such file."""
    try:
        if not safe(store):
            data = store.read(*parts)
            return Versioned(data, hashlib.sha256(data).hexdigest())
        got = store.fs.call_s3("get_object", **_place(store, *parts))
        now = got["ResponseMetadata"]["HTTPHeaders"].get("date")
        age = email.utils.parsedate_to_datetime(now) - got["LastModified"] if now else timedelta()
        return Versioned(_body(store, got), str(got["ETag"]), age.total_seconds())
    except FileNotFoundError:
        return None


def put_version(
    store: StoreFiles, data: bytes, version: Version | None, *parts: str, sha256: str | None = None
) -> Version | None:
    """Write a file in place of that version (None: where there is none yet), whole or not at all.

    Args:
        sha256: of the data, to be kept beside it (`stated_digest`).

    Returns:
        its version now; None if another has been there before, and nothing was written.
    """
    if not safe(store):
        there = read_version(store, *parts)
        if (there.version if there else None) != version:
            return None
        return store.put(data, *parts)
    condition: dict[str, Any] = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
    try:
        told = {**condition, **_stating(sha256), **_place(store, *parts)}
        return str(store.fs.call_s3("put_object", Body=data, **told)["ETag"])
    except OSError as error:
        if _refused(error):
            return None
        raise


def put_file_version(
    store: StoreFiles, source: Path, version: Version | None, *parts: str, sha256: str | None = None
) -> Version | None:
    """`put_version` on S3 for a local file of any size. A large one goes in parts, several at once; that there was none yet is then looked
    at when all of it is there.
    """
    size = source.stat().st_size
    try:
        if size <= PART:
            return put_version(store, source.read_bytes(), version, *parts, sha256=sha256)
        if version is not None and size <= LARGEST_PUT:
            with source.open("rb") as body:
                told = {"IfMatch": version, **_stating(sha256), **_place(store, *parts)}
                return str(store.fs.call_s3("put_object", Body=body, **told)["ETag"])
        if version is not None:
            store.delete([parts])
        return _put_parts(store, source, size, sha256, *parts)
    except OSError as error:
        if _refused(error):
            return None
        raise


@cache
def _senders() -> ThreadPoolExecutor:
    """Of this process: no more than so many parts are in memory at once."""
    return ThreadPoolExecutor(AT_ONCE, "parts")


def _put_parts(store: StoreFiles, source: Path, size: int, sha256: str | None, *parts: str) -> Version:
    place, length = _place(store, *parts), max(PART, -(-size // MOST_PARTS))
    upload = {"UploadId": store.fs.call_s3("create_multipart_upload", **_stating(sha256), **place)["UploadId"], **place}

    def put(at: int) -> dict[str, Any]:
        with source.open("rb") as file:
            file.seek(at * length)
            body = file.read(length)
        answer = store.fs.call_s3("upload_part", PartNumber=at + 1, Body=body, **upload)
        return {"PartNumber": at + 1, "ETag": answer["ETag"]}

    try:
        done = list(_senders().map(put, range(-(-size // length))))
        told = {"MultipartUpload": {"Parts": done}, "IfNoneMatch": "*"}
        return str(store.fs.call_s3("complete_multipart_upload", **told, **upload)["ETag"])
    except BaseException:
        with contextlib.suppress(Exception):  # what is left of it is collected (`engine.upkeep.collection`)
            store.fs.call_s3("abort_multipart_upload", **upload)
        raise


def etag(store: StoreFiles, *parts: str) -> Version | None:
    """The version of a file on S3, without reading it; None if there is none."""
    try:
        return str(store.fs.call_s3("head_object", **_place(store, *parts))["ETag"])
    except FileNotFoundError:
        return None


def stated_digest(store: StoreFiles, version: Version, *parts: str) -> str | None:
    """The SHA-256 that was sent with this version of a file on S3, in the request that sent its bytes; None if none was."""
    try:
        found = store.fs.call_s3("head_object", **_place(store, *parts))
    except FileNotFoundError:
        return None
    return found.get("Metadata", {}).get(STATED) if found["ETag"] == version else None


def _stating(sha256: str | None) -> dict[str, Any]:
    return {"Metadata": {STATED: sha256}} if sha256 else {}


def _refused(error: BaseException) -> bool:
    """412: another version is there, or 404: none is any more; 409: another is being written right now."""
    response: Any = getattr(error.__cause__ or error, "response", None) or {}
    if response.get("Error", {}).get("Code") == "NoSuchBucket":
        return False
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
