"""Accounts in Label Studio: its API makes users without a password, so they are signed up as a person would."""

from __future__ import annotations

import httpx

from engine.errors import UserError
from labeling.tool.connection import ServerUnreachable

_PATH = "/user/signup/"


def sign_up(url: str, invited: str, email: str, password: str) -> None:
    """Fill in the form that an invitation leads to. `invited` is the organization's token.

    Raises:
        ServerUnreachable: nobody answers.
        UserError: the form was refused; where people sign in with another system, accounts are made there.
    """
    loopback = httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")
    try:
        with httpx.Client(base_url=url, timeout=120.0, trust_env=not loopback) as browser:
            browser.get(_PATH, params={"token": invited}).raise_for_status()
            form = {"email": email, "password": password, "csrfmiddlewaretoken": browser.cookies.get("csrftoken", "")}
            done = browser.post(_PATH, params={"token": invited}, data=form, headers={"Referer": url})
    except httpx.HTTPStatusError as error:
        raise UserError(f"Label Studio at {url} has no sign-up form (HTTP {error.response.status_code}).") from error
    except httpx.HTTPError as error:
        raise ServerUnreachable(f"Label Studio at {url} did not answer when {email} was signed up.") from error
    if done.status_code != 302:
        raise UserError(
            f"Label Studio at {url} did not sign up {email} (HTTP {done.status_code}): was the account removed from the"
            " organization, or do people sign in elsewhere? Add them under Organization > Members, and name them by address."
        )
