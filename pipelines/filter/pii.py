"""Personal data and secrets in a text: e-mail and IP addresses, phone, card and account numbers, keys.

Whatever has a check is checked: cards by issuer and Luhn's digit (ISO/IEC 7812-1), IBANs by country, length and ISO 7064's
mod 97-10, phone numbers by the numbering plan of their country (libphonenumber), IP addresses by whether they are public.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import phonenumbers
import polars as pl

from pipelines.filter.stage import PersonalData

# In this order: later kinds leave alone what an earlier one spans.
KINDS: tuple[PersonalData, ...] = ("key", "email", "iban", "card", "ip", "phone")


@dataclass(frozen=True)
class Span:
    """`text[start:end]` is of this kind."""

    kind: PersonalData
    start: int
    end: int


# Every pattern begins where a run of its characters begins and repeats a bounded number of times: none is quadratic.
EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)", re.ASCII)
IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
CARD = re.compile(r"(?<!\d)(?<!\d[ .-])\d(?:[ -]?\d){12,18}(?![ -]?\d)", re.ASCII)
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}")
PHONE = re.compile(r"(?<![\w.+])(?:\+|\()?[0-9](?:[ ().\u2010\u2011/-]{0,3}[0-9]){6,17}(?!\w)")
# Secrets that say what they are: the prefixes their issuers document, JSON web tokens (RFC 7519), PEM private keys.
KEY = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"(?:AKIA|ASIA)[0-9A-Z]{16}"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}|glpat-[\w-]{20,255}"  # GitHub, GitLab
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,255}"  # Slack
    r"|AIza[\w-]{35}"  # Google
    r"|hf_[A-Za-z0-9]{30,255}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,255}"
    r"|sk-[A-Za-z0-9_-]{20,255}|[rs]k_live_[A-Za-z0-9]{16,255}"  # OpenAI, Anthropic; Stripe
    r"|eyJ[\w-]{10,4096}\.eyJ[\w-]{10,4096}\.[\w-]{10,4096}"
    r")(?![A-Za-z0-9])"
    r"|-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[^-]{1,16384}-----END [A-Z ]{0,30}PRIVATE KEY-----"
)
# The length of an IBAN by country (ISO 13616 registry).
IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL", 19: "MK SI", 20: "AT BA EE KZ LT LU XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL", 24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "PT", 26: "IS TR",
        27: "FR GR IT MC SM", 28: "AL AZ BY CY DO GT HU LB PL", 29: "BR EG PS QA UA", 30: "JO KW MU", 31: "MT",
    }.items()
    for country in countries.split()
}  # fmt: skip


# What a text that holds a kind cannot be without, without look-around, for Polars' regular expressions: most texts hold
# nothing, and are passed over at some hundred MB/s.
SIGNS: dict[PersonalData, str] = {
    "key": "AKIA|ASIA|gh[pousr]_|github_pat_|glpat-|xox[abeoprs]-|AIza|hf_|npm_|pypi-|sk-|k_live_|eyJ|PRIVATE KEY",
    "email": "@",
    "iban": "[A-Z]{2}[0-9]{2} ?[A-Z0-9]",
    "card": "[0-9](?:[ -]?[0-9]){12}",
    "ip": r"[0-9]\.[0-9]{1,3}\.[0-9]|:[0-9A-Fa-f]{0,4}:",
    "phone": r"[0-9](?:[ ().\x{2010}\x{2011}/-]{0,3}[0-9]){6}",
}


def may_hold(texts: pl.Series, kinds: Iterable[str]) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
    """For each kind, which texts show its signs; in the others `find` would find nothing."""
    return {kind: texts.str.contains(SIGNS[kind]).fill_null(False).to_numpy() for kind in KINDS if kind in kinds}


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    doubled = (2 * int(d) for d in digits[-2::-2])
    return (sum(map(int, digits[::-2])) + sum(d - 9 * (d > 9) for d in doubled)) % 10 == 0


def is_card(digits: str) -> bool:
    """Whether these are the digits of a payment card: an issuer's prefix and length, and a right check digit."""
    first2, first4 = int(digits[:2]), int(digits[:4])
    lengths: tuple[int, ...] = ()
    if digits[0] == "4":
        lengths = (13, 16, 19)  # Visa
    elif 51 <= first2 <= 55 or 2221 <= first4 <= 2720:
        lengths = (16,)  # Mastercard
    elif first2 in (34, 37):
        lengths = (15,)  # American Express
    elif first4 == 6011 or first2 == 65 or 644 <= first4 // 10 <= 649 or 3528 <= first4 <= 3589:
        lengths = (16, 17, 18, 19)  # Discover, JCB
    elif first2 in (36, 38, 39) or 300 <= first4 // 10 <= 305:
        lengths = (14, 15, 16, 17, 18, 19)  # Diners Club
    elif first2 == 62:
        lengths = (16, 17, 18, 19)  # UnionPay
    return len(digits) in lengths and luhn(digits)


def is_iban(text: str) -> bool:
    """Whether this is an IBAN without spaces: country, length and check digits (ISO 13616, ISO 7064 mod 97-10)."""
    if IBAN_LENGTHS.get(text[:2]) != len(text):
        return False
    return int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def find(text: str, kinds: Iterable[str], region: str | None = None) -> list[Span]:
    """What of these kinds is in a text, in order and without overlaps.

    Args:
        region: the country (ISO 3166, `US`) whose phone numbers are found in their national form, too.
    """
    taken: list[Span] = []
    for kind in KINDS:
        if kind in kinds:
            for start, end in _spans(text, kind, region):
                if all(end <= other.start or start >= other.end for other in taken):
                    taken.append(Span(kind, start, end))
    return sorted(taken, key=lambda span: span.start)


def mask(text: str, spans: Iterable[Span]) -> str:
    """The text with each span replaced by its kind: `<EMAIL>`."""
    pieces: list[str] = []
    at = 0
    for span in spans:
        pieces += [text[at : span.start], f"<{span.kind.upper()}>"]
        at = span.end
    return "".join([*pieces, text[at:]])


def _spans(text: str, kind: PersonalData, region: str | None) -> Iterator[tuple[int, int]]:
    match kind:
        case "email":
            if "@" in text:
                yield from (m.span() for m in EMAIL.finditer(text))
        case "key":
            yield from (m.span() for m in KEY.finditer(text))
        case "card":
            yield from (m.span() for m in CARD.finditer(text) if is_card(re.sub(r"\D", "", m[0])))
        case "iban":
            for match in IBAN.finditer(text):
                # What follows an IBAN in capitals may have been taken for a part of it: its country tells where it ends.
                need, end = IBAN_LENGTHS.get(match[0][:2], 0), match.start()
                while need and end < match.end():
                    need -= text[end] != " "
                    end += 1
                if not need and is_iban(text[match.start() : end].replace(" ", "")):
                    yield match.start(), end
        case "ip":
            for pattern, sign in ((IPV4, "."), (IPV6, ":")):
                if sign in text:
                    yield from (m.span() for m in pattern.finditer(text) if _is_public(m[0]))
        case "phone":
            yield from _phones(text, region)


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _phones(text: str, region: str | None) -> Iterator[tuple[int, int]]:
    for match in PHONE.finditer(text):
        if region or match[0].startswith("+"):
            for number in phonenumbers.PhoneNumberMatcher(match[0], region):
                yield match.start() + number.start, match.start() + number.end
