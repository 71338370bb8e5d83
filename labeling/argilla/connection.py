"""Requests to an Argilla server, tried again while it doesn't answer; what it refuses, in words."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from typing import Any

import httpx

from engine.errors import UserError
from engine.redaction import declare_value, redacted

_FAILURES = 4  # a server that is overloaded may fail once; one that fails every time has a fault


class ServerUnreachable(UserError):
    """No server answered for as long as the client was told to be patient."""


class ServerRefusal(UserError):
    """The server answered, and said no. `status` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Connection:
    """Requests to one server as one user. Safe to share between threads."""

    def __init__(self, url: str, api_key: str, patience: float) -> None:
        self.url = url.rstrip("/")
        self.api_key = api_key
        declare_value(api_key)
        self.patience = patience
        loopback = httpx.URL(self.url).host in ("127.0.0.1", "localhost", "::1")
        self._http = httpx.Client(
            base_url=f"{self.url}/api/v1/",
            headers={
                "X-Argilla-Api-Key": api_key,
                # The server spends more on compressing what it echoes of a bulk push than on storing it.
                **({"Accept-Encoding": "identity"} if loopback else {}),
            },
            timeout=httpx.Timeout(120.0, connect=10.0),
            trust_env=not loopback,
        )

    def close(self) -> None:
        self._http.close()

    def me(self) -> str:
        """The name of the user that the key belongs to."""
        return self.call("GET", "me", patience=0.0)["username"]

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
                raise UserError(f"{self.url!r} is not the address of an Argilla server: {error}.") from error
            else:
                failures += response.status_code >= 500
                if response.status_code < 500 or failures == _FAILURES:
                    return _body(response, self.url)
                trouble = f"HTTP {response.status_code}: {redacted(response.text)[:300]}"
            if time.monotonic() + pause > deadline:
                raise ServerUnreachable(
                    f"The Argilla server at {self.url} does not answer ({trouble})."
                    " Is it running (`flywheel argilla status`), and is ARGILLA_API_URL right?"
                )
            time.sleep(pause)
            pause = min(pause * 2, 2.0)


@contextlib.contextmanager
def unless(status: int) -> Generator[None]:
    """Let a refusal with this status pass: what was asked for is already so."""
    try:
        yield
    except ServerRefusal as refused:
        if refused.status != status:
            raise


def _body(response: httpx.Response, url: str) -> Any:
    if response.is_success:
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise UserError(f"{url} answers, but not as an Argilla server does: is the address right?") from error
    try:
        detail = response.json()
        detail = detail.get("detail", detail.get("message", detail))
    except (ValueError, AttributeError):
        detail = redacted(response.text)[:300]
    if response.status_code == 401:
        raise ServerRefusal(
            f"The Argilla server at {url} does not know this key. Check ARGILLA_API_KEY; a user's key is"
            " under 'My settings' in the web UI.",
            401,
        )
    if response.status_code == 403:
        raise ServerRefusal(f"The Argilla server at {url} does not allow this user to do that: {detail}.", 403)
    raise ServerRefusal(
        f"The Argilla server at {url} refused (HTTP {response.status_code}): {detail}", response.status_code
    )
