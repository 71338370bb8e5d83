"""How long prompts are, as far as it is known before a run."""

from __future__ import annotations

from typing import Any

CHARACTERS = 3  # a token, at least: of English more, with the chat template's own tokens beside them


def longest_prompt(given: dict[str, list[dict[str, Any]]], otherwise: int) -> int:
    """Tokens of the longest prompt: of those that are there already by their characters; of others, so many as `otherwise`."""
    known: list[int | None] = [one.get("longest") for one in given.get("prompts", [])]
    if not known or None in known:
        return otherwise
    return -(-max(length or 0 for length in known) // CHARACTERS) + 16
