"""Requests to an annotation tool's server, tried again while it doesn't answer; what it refuses, in words."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from engine.errors import UserError
from engine.redaction import declare_value, redacted

_FAILURES = 4  # a server that is overloaded may fail once; one that fails every time has a fault


@dataclass(frozen=True)
class ToolWords:
    """What a user is told of a tool's server: its name, what to look at if it is silent, and where a key is found."""

    name: str
    silent: str
    unknown_key: str


class ServerUnreachable(UserError):
    """No server answered for as long as the client was told to be patient."""


class ServerRefusal(UserError):
    """The server answered, and said no. `status` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Connection:
    """Requests to one server as one user. Safe to share between threads."""

    def __init__(
        self,
        url: str,
        api_key: str,
        patience: float,
        *,
        words: ToolWords,
        path: str,
        auth: httpx.Auth | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.api_key = api_key
        declare_value(api_key)
        self.patience = patience
        self.words = words
        loopback = httpx.URL(self.url).host in ("127.0.0.1", "localhost", "::1")
        self._http = httpx.Client(
            base_url=f"{self.url}/{path}/",
            auth=auth,
            headers={
                **(headers or {}),
                # A server spends more on compressing what it echoes of a bulk push than on storing it.
                **({"Accept-Encoding": "identity"} if loopback else {}),
            },
            timeout=httpx.Timeout(120.0, connect=10.0),
            trust_env=not loopback,
        )

    def close(self) -> None:
        self._http.close()

    def call(self, method: str, path: str, *, patience: float | None = None, **request: Any) -> Any:
        """One request, repeated while the server doesn't answer; its JSON. Every caller can bear a repetition.

        Raises:
            ServerUnreachable: it did not answer within `patience` seconds.
            ServerRefusal: it said no, in its own words.
        """
        deadline = time.monotonic() + (self.patience if patience is None else patience)
        pause, failures = 0.1, 0
        while True:
            try:
                response = self._http.request(method, path, **request)
            except httpx.HTTPError as error:  # refused, reset, timed out, cut off in the middle
                trouble = str(error) or type(error).__name__
            except httpx.InvalidURL as error:
                raise UserError(f"{self.url!r} is not the address of a {self.words.name} server: {error}.") from error
            else:
                failures += response.status_code >= 500
                if response.status_code < 500 or failures == _FAILURES:
                    return self._body(response)
                trouble = f"HTTP {response.status_code}: {redacted(response.text)[:300]}"
            if time.monotonic() + pause > deadline:
                raise ServerUnreachable(
                    f"The {self.words.name} server at {self.url} does not answer ({trouble}). {self.words.silent}"
                )
            time.sleep(pause)
            pause = min(pause * 2, 2.0)

    def user(self, path: str, field: str) -> str:
        """What the server calls the user that the key belongs to.

        Raises:
            UserError: what answers there is another server.
        """
        told = self.call("GET", path, patience=0.0)
        if not isinstance(told, dict) or not isinstance(told.get(field), str):  # pyright: ignore[reportUnknownMemberType]
            raise self._stranger()
        return told[field]

    def _stranger(self) -> UserError:
        return UserError(f"{self.url} answers, but not as a {self.words.name} server does: is the address right?")

    def _body(self, response: httpx.Response) -> Any:
        if response.is_success:
            if not response.content:
                return None
            try:
                return response.json()
            except ValueError as error:
                raise self._stranger() from error
        server, status, detail = f"The {self.words.name} server at {self.url}", response.status_code, _detail(response)
        if status == 401:
            said = f" It says: {detail}." if isinstance(detail, str) else ""
            raise ServerRefusal(f"{server} does not know this key.{said} {self.words.unknown_key}", 401)
        if status == 403:
            raise ServerRefusal(f"{server} does not allow this user to do that: {detail}.", 403)
        raise ServerRefusal(f"{server} refused (HTTP {status}): {detail}", status)


@contextlib.contextmanager
def unless(status: int) -> Generator[None]:
    """Let a refusal with this status pass: what was asked for is already so."""
    try:
        yield
    except ServerRefusal as refused:
        if refused.status != status:
            raise


def _detail(response: httpx.Response) -> Any:
    """The server's own words."""
    try:
        detail = response.json()
        return detail.get("validation_errors") or detail.get("detail", detail.get("message", detail))
    except (ValueError, AttributeError):
        return redacted(response.text)[:300]
