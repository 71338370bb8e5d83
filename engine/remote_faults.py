"""What a server that holds a store, or the way to it, fails at, in words: no bucket, no right, nobody there, too slow.

Everything was tried again several times before (`engine.store.s3`). The errors are recognised by botocore's names, so that nothing is imported.
"""

from __future__ import annotations

import os
import re
from typing import Any

AGAIN = "what is done is kept, and running again goes on from here"
_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE, or what the machine has been given)"
# botocore's classes, and what the server's codes mean.
AWAY = ("EndpointConnectionError", "ConnectTimeoutError", "ConnectionError", "ConnectionClosedError", "ProxyConnectionError", "HTTPClientError",
        "ClientConnectorError", "ServerDisconnectedError")  # fmt: skip
SLOW = ("ReadTimeoutError", "FSTimeoutError", "IncompleteRead", "ResponseStreamingError", "ClientPayloadError")
NO_KEYS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "TokenRetrievalError",
    "ProfileNotFound",
)
UNKNOWN_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired")
DENIED = ("AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden", "InvalidObjectState")
BUSY = ("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "500", "502", "503", "504")


def remote_fault(error: BaseException) -> str | None:
    """What went wrong on the way to a server and what to do, if this error says so; else None."""
    name, module = type(error).__name__, type(error).__module__.partition(".")[0]
    if isinstance(response := getattr(error, "response", None), dict) and "Error" in response:
        return _answer(error, response)
    if module not in ("botocore", "aiobotocore", "aiohttp", "urllib3", "fsspec", "s3fs"):
        return None
    server = _server(error)
    if name in NO_KEYS:
        return f"there are no credentials for {server} ({_line(error)}). Set {_KEYS}."
    if name in SLOW:
        return f"{server} was too slow: an answer did not come, or not to its end ({_line(error)}). When it is well, {AGAIN}."
    if name in AWAY:
        return f"{server} can't be reached ({_line(error)}). If the address is right (AWS_ENDPOINT_URL): when it is back, {AGAIN}."
    return None


def _answer(error: BaseException, response: dict[str, Any]) -> str | None:
    told: dict[str, Any] = response["Error"]
    code, said = str(told.get("Code", "")), " ".join(str(told.get("Message") or "").split())[:200]
    server, what = _server(error), getattr(error, "operation_name", "a request")
    quoted = f"{code}: {said}" if said and said != code else code
    if code == "NoSuchBucket":
        bucket = f" `{told['BucketName']}`" if told.get("BucketName") else ""
        return f"there is no bucket{bucket} at {server}. Make it, or name another (`--store`, FLYWHEEL_STORE, AWS_ENDPOINT_URL)."
    if code in UNKNOWN_KEYS:
        return f"{server} does not take the credentials ({quoted}). Set {_KEYS}."
    if code in DENIED:
        return f"{server} refuses {what} ({quoted}). These credentials need to read, write, list and delete there."
    if code in BUSY:
        return f"{server} could not serve {what} ({quoted}), several times. When it is well, {AGAIN}."
    return None


def _server(error: BaseException) -> str:
    named = re.search(r"https?://[^/\s\"'?]+", str(error))
    return named[0] if named else os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "S3"


def _line(error: BaseException) -> str:
    return re.sub(r"\?\S+", "", " ".join(str(error).split()))[:200] or type(error).__name__
