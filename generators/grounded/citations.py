"""An answer in statements, and the passages that each of them cites as [1] or [2, 3].

A statement is a sentence; marks that stand after its full stop ("It opens at nine. [1]") are its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

CITED = re.compile(r"\[(\d{1,6}(?:\s*,\s*\d{1,6})*)\]")
_MARK = CITED.pattern.replace("(", "(?:", 1)
# A sentence ends at a full stop before white space and something that may begin one, or at a line; not in "e.g. this", "No. 4", "J. Doe".
_END = re.compile(
    rf"(?:(?<!\b[A-Z])(?<!\be\.g)(?<!\bi\.e)(?<!\b[Nn]o)(?<!\b[Dd]r)(?<!\b[Mm]r)(?<!\b[Mm]rs)(?<!\b[Ss]t)(?<!\bvs)[.!?…]+[\"'”’)]*"
    rf"(?:\s*{_MARK})*(?=\s+[^a-z\s]|\s*$)|[。！？]+[」』”’]*(?:\s*{_MARK})*|\n+)"
)


@dataclass(frozen=True)
class Statement:
    """A sentence of an answer.

    Attributes:
        text: without the marks.
        cited: numbers of passages, from 1, each once, in the order of their mention; also of such as were not shown.
    """

    text: str
    cited: tuple[int, ...]


def numbers_cited(text: str) -> list[int]:
    """The numbers in all marks of a text, in order."""
    return [int(number) for group in CITED.findall(text) for number in group.split(",")]


def citations(text: str, shown: int) -> list[int]:
    """The passages that an answer cites, of `shown`, each once, in the order of their first mention."""
    return list(dict.fromkeys(number for number in numbers_cited(text) if 1 <= number <= shown))


def without_marks(text: str) -> str:
    """A text as it is read aloud."""
    return re.sub(r"\s+([.,;:!?。，；：！？])", r"\1", re.sub(r"[ \t]{2,}", " ", CITED.sub("", text))).strip()


def statements(answer: str) -> list[Statement]:
    """The sentences of an answer, those without a letter or digit left out."""
    found, start = list[Statement](), 0
    for end in [*(match.end() for match in _END.finditer(answer)), len(answer)]:
        piece, start = answer[start:end], end
        text, cited = without_marks(piece), tuple(dict.fromkeys(numbers_cited(piece)))
        if any(character.isalnum() for character in text):
            found.append(Statement(text, cited))
        elif cited and found:  # marks on a line of their own
            found[-1] = Statement(found[-1].text, tuple(dict.fromkeys((*found[-1].cited, *cited))))
    return found
