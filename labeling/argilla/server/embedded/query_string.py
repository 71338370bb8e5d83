"""The search box's query language: words, "quoted phrases", -negation, prefix*, a | b and (groups).

Follows Elasticsearch's `simple_query_string` with `default_operator: AND`, which the Argilla UI was made for:
every word must occur as a whole word, in any field, whatever its case; a phrase must occur in one field. No
query is an error: stray operators are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

# Scripts written without spaces: every character is a word of its own, as in Elasticsearch's standard
# analyser.
_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_TOKEN = re.compile(r'(?P<op>-\(|[()|+])|(?P<neg>-)?(?:"(?P<phrase>[^"]*)"?|(?P<word>[^\s()|"]+))')


@dataclass(frozen=True)
class Term:
    """One word or phrase, casefolded."""

    pattern: re.Pattern[str]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Not:
    node: Node


@dataclass(frozen=True)
class AllOf:
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class AnyOf:
    nodes: tuple[Node, ...]


Node = Term | Not | AllOf | AnyOf


def parse(text: str) -> Node:
    """The query as a tree. A query without a single word matches everything."""
    tokens = list(_tokens(text))
    position = 0

    def either() -> Node:
        nonlocal position
        branches = [every()]
        while position < len(tokens) and tokens[position] == "|":
            position += 1
            branches.append(every())
        filled = [branch for branch in branches if branch != AllOf(())]
        return filled[0] if len(filled) == 1 else AnyOf(tuple(filled)) if filled else AllOf(())

    def every() -> Node:
        nonlocal position
        nodes: list[Node] = []
        while position < len(tokens) and tokens[position] not in ("|", ")"):
            token = tokens[position]
            position += 1
            if isinstance(token, str):
                if token in ("(", "-("):
                    group = either()
                    if position < len(tokens):
                        position += 1  # the closing bracket
                    nodes.append(Not(group) if token == "-(" else group)
            else:
                nodes.append(token)
        return nodes[0] if len(nodes) == 1 else AllOf(tuple(nodes))

    nodes: list[Node] = []
    while position < len(tokens):
        nodes.append(either())
        position += 1  # a closing bracket that nobody opened
    return nodes[0] if len(nodes) == 1 else AllOf(tuple(nodes))


def matches(node: Node, texts: Sequence[str]) -> bool:
    """Whether a record with these field texts answers the query."""
    return _matches(node, [text.casefold() for text in texts])


def _matches(node: Node, texts: Sequence[str]) -> bool:
    match node:
        case Term(pattern, words):
            # Finding a word as a plain string first spares most regular expressions.
            return any(words[0] in text and pattern.search(text) is not None for text in texts)
        case Not(inner):
            return not _matches(inner, texts)
        case AllOf(nodes):
            return all(_matches(inner, texts) for inner in nodes)
        case AnyOf(nodes):
            return any(_matches(inner, texts) for inner in nodes)


def required_words(node: Node) -> list[str]:
    """ASCII words that every matching record contains: a database can discard the others before `matches`
    runs.
    """
    match node:
        case Term(_, words):
            return [word for word in words if word.isascii() and word.isalnum()]
        case AllOf(nodes):
            return [word for inner in nodes for word in required_words(inner)]
        case _:
            return []


def _tokens(text: str) -> Iterator[Node | str]:
    for found in _TOKEN.finditer(text):
        if found["op"]:
            if found["op"] != "+":
                yield found["op"]
        else:
            raw = found["phrase"] if found["phrase"] is not None else found["word"].lstrip("+")
            prefix = found["phrase"] is None and raw.endswith("*")
            term = _term(raw, prefix)
            if term is not None:
                yield Not(term) if found["neg"] else term


def _term(raw: str, prefix: bool) -> Term | None:
    words = _WORD.findall(raw.casefold())
    if not words:
        return None
    unspaced = re.compile(f"[{_UNSPACED}]")
    pattern = re.escape(words[0])
    if not unspaced.match(words[0]):  # looking back from behind the word lets the search jump from word to word
        pattern += rf"(?<![^\W{_UNSPACED}]{pattern})"
    for before, word in pairwise(words):
        pattern += r"\W*" if unspaced.match(word) or unspaced.match(before) else r"\W+"
        pattern += re.escape(word)
    if not prefix and not unspaced.match(words[-1]):
        pattern += rf"(?![^\W{_UNSPACED}])"
    return Term(re.compile(pattern), tuple(words))
