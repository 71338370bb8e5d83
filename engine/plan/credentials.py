"""A recipe holds no secrets: what stands in it is kept, in manifests, records and cards, and handed on with them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any, cast

from engine.errors import UserError
from engine.redaction import declare_named, exposed, secrets

Place = tuple[str | int, ...]
VARIABLE = re.compile("[A-Z_][A-Z0-9_]*")
WAY_OUT = (
    "It would be kept in manifests, records and cards: take it out. A server's key comes from the environment variable that `key` "
    "names; what opens files and stores comes from the environment (HF_TOKEN, AWS_ACCESS_KEY_ID, ...), or from AWS's or fsspec's own "
    "files; what a signed URL leads to can be downloaded first."
)


def refuse_secrets(data: Any, fail: Callable[[Place, str], UserError]) -> None:
    """
    Args:
        data: a recipe as parsed.
        fail: makes an error that says where.

    Raises:
        UserError: a text in it is a secret of the environment, or holds credentials. The error doesn't repeat them.
    """
    declare_named(data)
    texts = list(_texts(data, ()))
    known = set(secrets())
    # One look at all of them first: a recipe may have many.
    if exposed("\n".join(text for _, text in texts)) or any(text in known for _, text in texts):
        for place, text in texts:
            if found := exposed(text):
                raise fail(place, f"{_name(place)} holds {found}. {WAY_OUT}")
    for place, text in texts:
        if place[-1:] == ("key",) and place[-2:-1] in (("server",), ("user_server",)) and not _is_variable(text):
            told = "names the environment variable that holds the key, as in OPENAI_API_KEY. What stands there is no such name"
            raise fail(place, f"{_name(place)} {told}; if it is the key itself: {WAY_OUT[0].lower()}{WAY_OUT[1:]}")


def _is_variable(text: str) -> bool:
    return text == "key" or text in os.environ or VARIABLE.fullmatch(text) is not None


def _texts(value: Any, place: Place) -> Iterator[tuple[Place, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, one in cast(dict[Any, Any], value).items():
            yield (*place, str(key)), str(key)
            yield from _texts(one, (*place, str(key)))
    elif isinstance(value, list):
        for index, one in enumerate(cast(list[Any], value)):
            yield from _texts(one, (*place, index))


def _name(place: Place) -> str:
    """A place in words, unless its own name is the secret."""
    if any(isinstance(part, str) and exposed(part) for part in place):
        return "a key of the recipe"
    if place[:1] == ("stages",) and len(place) > 2:
        return f"stage `{place[1]}`: `{'.'.join(map(str, place[2:]))}`"
    return f"`{'.'.join(map(str, place))}`"
