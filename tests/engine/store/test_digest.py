"""Digests of values."""

from __future__ import annotations

import hashlib

from engine.store.digest import digest_json


def test_every_value_has_a_digest_halves_of_surrogate_pairs_too() -> None:
    assert digest_json({"b": 1, "a": "é"}) == hashlib.sha256('{"a":"é","b":1}'.encode()).hexdigest()
    assert len({digest_json({"a": text}) for text in ("\ud800", "\ud801", "?", "")}) == 4
