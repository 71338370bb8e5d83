"""Whether a text says anything: no content, a loop, an echo of what was asked. One rule for every method and for `corpus`.

Small models give all three, and none of them ends at `max_tokens` by necessity, so that `cut_off` does not find them.
"""

from __future__ import annotations

import re
import unicodedata
import zlib

from engine.text.words import words

CONTENT = 1  # raised when another text counts as saying something: part of the key of stages that go by it
LEAST_LOOP = 40  # characters: "ha ha ha ha" is no loop yet
RUN = re.compile(r"(\S(?:.{0,199}?\S)?\s*?)\1{3,}", re.DOTALL)  # something said four times in a row, or more often
NUMBERED = re.compile(r"^\s*(?:[-*]|\d+[.):])\s*")
PREAMBLE = re.compile(r"^(sure|certainly|of course)?\W*here('s| is| are)\b[^\n:]{0,120}:\s+", re.I)
LABEL = re.compile(r"^\W*(?:task|instruction|question|prompt|input|output|answer|response)\s*\d*\s*:", re.I)


def emptiness(text: str) -> str | None:
    """How a text has no letter, digit or symbol in it, in words: "...", "```", " - "; None if it has one."""
    kinds = (unicodedata.category(character) for character in text)
    if any(kind[0] in "LN" or (kind[0] == "S" and kind != "Sk") for kind in kinds):
        return None
    return f"no letter, digit or symbol in {text[:100]!r}"


def loop(text: str) -> str | None:
    """What a text says over and over, in words: at its end, or for half of it; None if it goes on to say something.

    A line counts without its number in a list. Digits and rules drawn of signs ("0000", "-----") are no loops.
    """
    text = text.strip()
    # Half a text that is a loop makes it small; else only the end of a long one is looked at, since looking takes 5 us a character.
    long = len(text) > 1000 and 3 * len(zlib.compress(text.encode("utf-8", "replace"), 1)) > len(text)
    looked_at = text[-1000:] if long else text
    for run in RUN.finditer(looked_at):
        unit, length = run[1].strip(), len(run[0])
        lasts = 2 * length >= len(text) or run[1].startswith(looked_at[run.end() :])  # the last round may have been cut
        if lasts and length >= LEAST_LOOP and any(c.isalpha() for c in unit):
            return f"{unit[:80]!r} {text.count(unit)} times"
    lines = [NUMBERED.sub("", line).strip() for line in text.splitlines()]
    for line in {line for line in lines if any(c.isalpha() for c in line)}:
        times = lines.count(line)
        if times >= 4 and times * len(line) >= max(LEAST_LOOP, len(text) / 2):
            return f"the line {line[:80]!r} {times} times"
    return None


def echo(text: str, asked: str) -> str | None:
    """How a text repeats what was asked, or its first paragraph (an instruction before its input), word for word; else None."""
    said = words(LABEL.sub("", PREAMBLE.sub("", text)))
    for whole in (asked, asked.strip().partition("\n\n")[0]):
        if len(said) > 2 and said == words(LABEL.sub("", whole)):
            return f"it says what was asked: {text[:100]!r}"
    return None


def fault(text: str, asked: str = "") -> tuple[str, str] | None:
    """Why an answer is none: `no_content`, `echo` or `loop`, and the particulars; None if it is one."""
    for reason, found in (("no_content", emptiness(text)), ("echo", echo(text, asked)), ("loop", loop(text))):
        if found:
            return reason, found
    return None
