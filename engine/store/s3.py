"""S3 as the store speaks it: s3fs, with every request counted, none that is needless, and no listing of before.

Credentials come from the environment and the files that every AWS tool reads, the endpoint from `AWS_ENDPOINT_URL`. What fails on its way
is tried again: six times, about 15 s in all, or as `AWS_MAX_ATTEMPTS` and `AWS_RETRY_MODE` say.
"""

from __future__ import annotations

import os
from typing import Any, cast

import s3fs
from fsspec.asyn import sync_wrapper
from s3fs.core import _error_wrapper  # pyright: ignore[reportPrivateUsage]  # retries where an answer breaks off

from engine.store import request_counts

BATCH = 1000  # keys that one request deletes
SETTINGS = ("AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE")


class S3(s3fs.S3FileSystem):  # pyright: ignore[reportUntypedBaseClass]
    """fsspec keeps one of each endpoint."""

    _counted: Any = None

    async def set_session(self, refresh: bool = False, kwargs: dict[str, Any] = {}) -> Any:  # noqa: B006
        client = await super().set_session(refresh, kwargs)
        if client is not self._counted:
            client.meta.events.register("before-send.s3", request_counts.count)
            self._counted = client
        return client

    _connect = set_session
    connect = sync_wrapper(set_session)

    async def _cat_file(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, path: str, version_id: Any = None, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        """In one request: who reads a file whole does not ask first how long it is."""
        if start is not None or end is not None:
            return cast(
                bytes, await super()._cat_file(path, version_id=version_id, start=start or 0, end=end, **options)
            )
        bucket, key, _ = self.split_path(path)

        async def read() -> bytes:
            answer = await self._call_s3("get_object", Bucket=bucket, Key=key)
            async with answer["Body"] as body:
                return cast(bytes, await body.read())

        return cast(bytes, await _error_wrapper(read, retries=self.retries))

    async def _entries(self, path: str) -> dict[str, tuple[int, str, float]]:
        bucket, key, _ = self.split_path(path)
        prefix = f"{key.rstrip('/')}/" if key else ""
        found: dict[str, tuple[int, str, float]] = {}
        async for page in self._list_pages("list_objects_v2", Bucket=bucket, Prefix=prefix):
            for one in page.get("Contents", []):
                if name := one["Key"].removeprefix(prefix):
                    found[name] = (one["Size"], one["ETag"], one["LastModified"].timestamp())
        return found

    async def _names(self, path: str) -> list[str]:
        bucket, key, _ = self.split_path(path)
        prefix = f"{key.rstrip('/')}/" if key else ""
        found: list[str] = []
        async for page in self._list_pages("list_objects_v2", Bucket=bucket, Prefix=prefix, Delimiter="/"):
            told = [one["Prefix"] for one in page.get("CommonPrefixes", [])]
            told += [one["Key"] for one in page.get("Contents", [])]
            found += [name for one in told if (name := one.removeprefix(prefix).rstrip("/"))]
        return found

    async def _delete(self, paths: list[str]) -> None:
        for at in range(0, len(paths), BATCH):
            bucket = self.split_path(paths[at])[0]
            keys = [{"Key": self.split_path(path)[1]} for path in paths[at : at + BATCH]]
            answer = await self._call_s3("delete_objects", Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
            if refused := answer.get("Errors"):  # with status 200
                raise PermissionError(f"{refused[0].get('Key')} can't be deleted: {refused[0].get('Message')}")

    async def _uploads(self, path: str) -> list[tuple[str, str, float]]:
        bucket, key, _ = self.split_path(path)
        found: list[tuple[str, str, float]] = []
        where = {"Bucket": bucket, "Prefix": f"{key.rstrip('/')}/"}
        while True:
            page = await self._call_s3("list_multipart_uploads", **where)
            for one in page.get("Uploads", []):
                found.append((f"{bucket}/{one['Key']}", one["UploadId"], one["Initiated"].timestamp()))
            if not page.get("IsTruncated"):
                return found
            where |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    async def _abort(self, path: str, upload: str) -> None:
        bucket, key, _ = self.split_path(path)
        await self._call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload)

    uploads = sync_wrapper(_uploads)  # begun below a folder and not ended: path, id, when begun
    abort = sync_wrapper(_abort)
    entries = sync_wrapper(_entries)  # objects below a folder: bytes, ETag, when written
    names = sync_wrapper(_names)  # what is in a folder
    delete = sync_wrapper(_delete)  # objects of one bucket; those that are gone are no error


def open_s3() -> S3:
    """The file system that the environment names, without a request."""
    options: dict[str, Any] = {"use_listings_cache": False}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        options["endpoint_url"] = endpoint
    if not any(name in os.environ for name in SETTINGS):
        options["config_kwargs"] = {"retries": {"max_attempts": 6, "mode": "standard"}}
    return S3(**options)
