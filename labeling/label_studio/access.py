"""Whose key it is: the two kinds of keys that Label Studio knows, and accounts by the names that we give annotators."""

from __future__ import annotations

import re
from collections.abc import Generator
from urllib.parse import unquote

import httpx

from engine.errors import UserError
from engine.redaction import declare_value

DOMAIN = "annotators.flywheel.invalid"  # of addresses that stand for names: no mail is ever sent there (RFC 2606)


class UserToken(httpx.Auth):
    """A legacy token, for as long as it is valid."""

    def __init__(self, key: str) -> None:
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        request.headers["Authorization"] = f"Token {self._key}"
        yield request


class PersonalAccessToken(httpx.Auth):
    """A personal access token is no key itself: it is traded for one that is valid for minutes, again when that is over."""

    requires_response_body = True

    def __init__(self, url: str, key: str) -> None:
        self._refresh = f"{url}/api/token/refresh/"
        self._key = key
        self._access: str | None = None

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        access = self._access
        for _ in range(2):
            if access is None:
                traded = yield httpx.Request(
                    "POST", self._refresh, json={"refresh": self._key}, extensions=request.extensions
                )
                if not traded.is_success:
                    return
                try:
                    access = str(traded.json()["access"])
                except (ValueError, KeyError, TypeError):  # another server: the caller sees by what it said
                    return
                declare_value(access)
                self._access = access
            request.headers["Authorization"] = f"Bearer {access}"
            response = yield request
            if response.status_code != 401:
                return
            access = None


def auth_of(url: str, key: str) -> httpx.Auth:
    """How a key is shown: personal access tokens are JWTs, three parts with dots between."""
    return PersonalAccessToken(url, key) if key.count(".") == 2 else UserToken(key)


def email_of(name: str) -> str:
    """The address that an annotator signs in with. A name without @ gets one that says the name, whatever is in it.

    Raises:
        UserError: the name has an @, and is no address as Label Studio writes them.
    """
    if "@" not in name:
        kept = "".join(c if re.fullmatch("[a-z0-9_-]", c) else "".join(f"%{b:02x}" for b in c.encode()) for c in name)
        return f"{kept}@{DOMAIN}"
    if not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", name) or name != name.lower():
        raise UserError(
            f"{name!r} can't be an annotator in Label Studio: expected a name, or an address in lower case."
        )
    return name


def name_of(email: str) -> str:
    """The inverse of `email_of`."""
    local, _, domain = email.rpartition("@")
    return unquote(local) if domain == DOMAIN else email
