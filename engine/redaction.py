"""Secrets stay out of what is kept and shown: errors, logs, records, manifests, cards, pages.

What counts as a secret: the values of environment variables named like one (`KEY`, `TOKEN`, `SECRET`, `PASSWORD`, ...) or that a
recipe names as a key, credentials inside URLs, and what looks like a key of a well-known service.
"""

from __future__ import annotations

import os
import re

HIDDEN = "[hidden]"
SHORTEST = 8  # a shorter value would hide ordinary words
_NAMED = re.compile(r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|PWD|CREDENTIALS?|AUTH)(?:_|$)", re.IGNORECASE)
_IN_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^\s/@:]*(?::[^\s/@]*)?@", re.IGNORECASE)
_PARAMETER = re.compile(
    r"(?P<name>[?&](?:api_?key|key|access_?token|token|sig(?:nature)?|password|secret)=)[^&\s\"'<>]+", re.IGNORECASE
)
_HEADER = re.compile(r"(?P<name>\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{8,}")
_WELL_KNOWN = re.compile(
    r"\b(?:sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16}|xox[abprs]-[A-Za-z0-9-]{10,})"
)
_declared: set[str] = set()


def declare(variable: str) -> None:
    """Have the value of this environment variable count as a secret, whatever it is called."""
    _declared.add(variable)


def secrets() -> list[str]:
    """The values that count as secrets now, longest first."""
    values = {value for name, value in os.environ.items() if name in _declared or _NAMED.search(name)}
    return sorted((value for value in values if len(value) >= SHORTEST), key=len, reverse=True)


def redacted(text: str) -> str:
    """The text with every secret in it hidden."""
    for value in secrets():
        text = text.replace(value, HIDDEN)
    text = _IN_URL.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _PARAMETER.sub(rf"\g<name>{HIDDEN}", text)
    text = _HEADER.sub(rf"\g<name>{HIDDEN}", text)
    return _WELL_KNOWN.sub(HIDDEN, text)
