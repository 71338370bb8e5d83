"""The search box's query language: words, "quoted phrases", -negation, prefix*, a | b and (groups).

Follows Elasticsearch's `simple_query_string` with `default_operator: AND`, which the Argilla UI was made for:
every word must occur as a whole word, in any field, however it is written; a phrase must occur in one field. Stray
operators are ignored. A query in which no word is left ("???") finds nothing; an empty one, everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from word_segments import PART, spaced, words  # pyright: ignore[reportMissingImports, reportUnknownVariableType]

MOST_WORDS = 500
DEEPEST = 30  # groups within groups
_TOKEN = re.compile(r'(?P<op>-\(|[()|+])|(?P<neg>-)?(?:"(?P<phrase>[^"]*)"?|(?P<word>[^\s()|"]+))')


class QueryTooLarge(ValueError):
    """More words, or groups within groups, than are searched for."""


@dataclass(frozen=True)
class Term:
    """A word or phrase: what the text holds of it, words between spaces; a prefix without the last space."""

    needle: str


@dataclass(frozen=True)
class Not:
    node: Node


@dataclass(frozen=True)
class AllOf:
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class AnyOf:
    """Of none: nothing."""

    nodes: tuple[Node, ...]


Node = Term | Not | AllOf | AnyOf
EVERYTHING, NOTHING = AllOf(()), AnyOf(())


def parse(text: str) -> Node:
    """The query as a tree.

    Raises:
        QueryTooLarge: in words, with what is allowed.
    """
    tokens = list(_tokens(text))
    if not text.strip():
        return EVERYTHING
    if not any(isinstance(token, Term | Not) for token in tokens):
        return NOTHING
    _refuse_too_large(tokens)
    position = 0

    def either() -> Node:
        nonlocal position
        branches = [every()]
        while position < len(tokens) and tokens[position] == "|":
            position += 1
            branches.append(every())
        stated = [branch for branch in branches if branch != EVERYTHING]
        return stated[0] if len(stated) == 1 else AnyOf(tuple(stated)) if stated else EVERYTHING

    def every() -> Node:
        nonlocal position
        nodes: list[Node] = []
        while position < len(tokens) and tokens[position] not in ("|", ")"):
            token = tokens[position]
            position += 1
            if isinstance(token, str):
                group = either()
                if position < len(tokens):
                    position += 1  # the closing bracket
                if group != EVERYTHING:  # no word between the brackets
                    nodes.append(Not(group) if token == "-(" else group)
            else:
                nodes.append(token)
        return nodes[0] if len(nodes) == 1 else AllOf(tuple(nodes))

    nodes: list[Node] = []
    while position < len(tokens):
        nodes.append(either())
        position += 1  # a closing bracket that nobody opened
    return nodes[0] if len(nodes) == 1 else AllOf(tuple(nodes))


def _refuse_too_large(tokens: Sequence[Node | str]) -> None:
    count = sum(isinstance(token, Term | Not) for token in tokens)
    if count > MOST_WORDS:
        raise QueryTooLarge(
            f"The search has {count:,} words; at most {MOST_WORDS} are searched for."
            ' Shorten it, or put what belongs together between quotation marks: "a phrase".'
        )
    depth = deepest = 0
    for token in tokens:
        depth += 1 if token in ("(", "-(") else -1 if token == ")" and depth else 0
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise QueryTooLarge(
            f"The search has {deepest:,} brackets within each other; at most {DEEPEST} are understood."
            " Leave some out; to search for brackets themselves is not possible."
        )


def joined(texts: Sequence[str]) -> str:
    """The texts of a record in the form that `matches_joined` searches: words between spaces, texts apart."""
    return PART.join(map(spaced, texts))


def matches(node: Node, texts: Sequence[str]) -> bool:
    """Whether a record with these texts answers the query."""
    return matches_joined(node, joined(texts))


def matches_joined(node: Node, text: str) -> bool:
    """As `matches`, of what `joined` gave."""
    match node:
        case Term(needle):
            return needle in text
        case Not(inner):
            return not matches_joined(inner, text)
        case AllOf(nodes):
            return all(matches_joined(inner, text) for inner in nodes)
        case AnyOf(nodes):
            return any(matches_joined(inner, text) for inner in nodes)


def sought(node: Node) -> list[str]:
    """The needles that speak for a record when they occur in it: all but those under a negation, each once."""
    match node:
        case Term(needle):
            return [needle]
        case Not():
            return []
        case AllOf(nodes) | AnyOf(nodes):
            return list(dict.fromkeys(needle for inner in nodes for needle in sought(inner)))


def _tokens(text: str) -> Iterator[Node | str]:
    for token in _TOKEN.finditer(text):
        if token["op"]:
            if token["op"] != "+":
                yield token["op"]
            continue
        phrase = token["phrase"]
        raw = phrase if phrase is not None else token["word"].lstrip("+")
        prefix = phrase is None and raw.endswith("*")
        if found := words(raw):
            term = Term(f" {' '.join(found)}" + ("" if prefix else " "))
            yield Not(term) if token["neg"] else term
