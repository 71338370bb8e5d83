from __future__ import annotations

import time

import polars as pl
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from pipelines.filter.pii import KINDS, find, is_card, is_iban, luhn, mask, may_hold

SECRET = "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r8"  # put together at run time, so that no scanner takes them for real ones
# From the registries' and issuers' own documentation of test values.
CARDS = ["4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005", "6011111111111117", "3530111333300000",
         "30569309025904", "2223003122003222", "4222222222222"]  # fmt: skip
IBANS = ["GB82 WEST 1234 5698 7654 32", "DE89370400440532013000", "FR14 2004 1010 0505 0001 3M02 606",
         "NO93 8601 1117 947", "MT84MALT011000012345MTLCAST001S", "CH93 0076 2011 6238 5295 7"]  # fmt: skip
KEYS = ["AKIA" + SECRET[:16].upper(), "ghp_" + SECRET, "sk-proj-" + SECRET, "xoxb-" + SECRET, "AIza" + SECRET[:35],
        "hf_" + SECRET, f"eyJ{SECRET}.eyJ{SECRET}.{SECRET}",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc=\n-----END RSA PRIVATE KEY-----"]  # fmt: skip
EMAILS = ["jane.doe+tag@mail.example.co.uk", "x@y.org", "o_0@sub-domain.museum"]
IPS = ["8.8.8.8", "2001:4860:4860::8888", "93.184.216.34"]
PHONES = ["+49 30 901820", "+1 (212) 555-0123", "+442079460958", "+33 1 42 68 53 00"]


def kinds(text: str, region: str | None = None) -> list[tuple[str, str]]:
    return [(f.kind, text[f.start : f.end]) for f in find(text, KINDS, region)]


@pytest.mark.parametrize(
    ("kind", "examples"),
    [("card", CARDS), ("iban", IBANS), ("key", KEYS), ("email", EMAILS), ("ip", IPS), ("phone", PHONES)],
)
def test_what_is_there_is_found_whole_and_once(kind: str, examples: list[str]) -> None:
    for example in examples:
        for text in (example, f"It is {example}.", f"({example}), they SAID", f"Zahl: {example}\n42 AND MORE"):
            assert kinds(text) == [(kind, example)], text
    joined = " ; ".join(examples)
    assert [found for _, found in kinds(joined)] == examples


@pytest.mark.parametrize("text", [
    "4111 1111 1111 1112", "1234 5678 9012 3452",  # a wrong check digit; a right one of no issuer
    "GB82 WEST 1234 5698 7654 33", "ZZ82 WEST 1234 5698 7654 32", "AB12 CDEF",
    "192.168.0.1", "127.0.0.1", "10.1.2.3", "1.2.3", "300.1.1.1", "1.2.3.4.5", "12:30:45", "fe80::1", "a::b::c", "std::vector",
    "2024-10-11 12:30", "+1 23", "pi is 3.14159265358979", "+999 123 456 789", "@home", "a@b", "me@localhost", "x @ y.com",
    "sk-short", "AKIA123", "user_ghp_nothing", "f(x) = 1000000 * 22",
])  # fmt: skip
def test_what_only_looks_like_it_is_left(text: str) -> None:
    assert kinds(text) == []


def test_checks_let_one_digit_in_ten_and_one_in_97_pass() -> None:
    for body in ("411111111111111", "7992739871", "0"):
        assert sum(luhn(f"{body}{d}") for d in range(10)) == 1
    assert luhn("79927398713")  # the example of the standard's annex
    assert sum(is_card(f"41111111111111{n:02d}") for n in range(100)) == 10
    assert sum(is_iban(f"DE{n:02d}370400440532013000") for n in range(2, 99)) == 1


def test_national_numbers_need_a_region() -> None:
    text = "Call (212) 555-0123 or 555-0123, order 20241011."
    assert kinds(text) == []
    assert kinds(text, "US") == [("phone", "(212) 555-0123")]
    assert kinds("Ruf 030 901820 an", "DE") == [("phone", "030 901820")]


def test_signs_miss_nothing() -> None:
    examples = [("card", CARDS), ("iban", IBANS), ("key", KEYS), ("email", EMAILS), ("ip", IPS), ("phone", PHONES)]
    for kind, texts in examples:
        assert may_hold(pl.Series(texts), [kind])[kind].all()
    with_national = ["(212) 555-0123", "030 901820", "212.555.0123", "212\u2010555\u20110123"]
    assert may_hold(pl.Series(with_national), ["phone"])["phone"].all()
    assert [
        k for k, there in may_hold(pl.Series(["Nothing of the kind, in 2024: 12.5 %."]), KINDS).items() if there.any()
    ] == []


@settings(deadline=None, max_examples=300)
@for_all(
    st.lists(
        st.sampled_from(
            [*"0123456789+-. :@()/", "AKIA", "GB82", "hf_", "x@y.org", "8.8.8.8", "::", *CARDS[:2], *PHONES]
        ),
        max_size=40,
    )
)
def test_what_is_found_shows_its_signs(pieces: list[str]) -> None:
    text = "".join(pieces)
    for item in find(text, KINDS, "US"):
        assert may_hold(pl.Series([text]), [item.kind])[item.kind].all(), (item.kind, text)


def test_masks_name_the_kind_and_leave_the_rest() -> None:
    text = f"Mail x@y.org, call {PHONES[0]}, pay {CARDS[0]}."
    assert mask(text, find(text, KINDS)) == "Mail <EMAIL>, call <PHONE>, pay <CARD>."
    assert mask(text, find(text, ["email"])) == text.replace("x@y.org", "<EMAIL>")
    assert find(text, []) == []


@pytest.mark.parametrize(
    "piece", ["a", "1", "1.", "a@", "a.", "1 ", ":", "A1", "+1", "GB82", "-----BEGIN PRIVATE KEY-----", "eyJa."]
)
def test_no_text_takes_quadratic_time(piece: str) -> None:
    started = time.process_time()
    find(piece * (200_000 // len(piece)), KINDS, "US")
    assert time.process_time() - started < 3
