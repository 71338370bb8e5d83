"""Whether an answer says that the documents do not hold it, told by its wording: English, and the four wordings of our own."""

from __future__ import annotations

import re

# What a refusal says here. Several, so that a model learns to refuse and not one sentence.
WORDINGS = (
    "The documents do not say.",
    "I can't answer that from these documents.",
    "None of the passages answers this question.",
    "That is not in the documents.",
)
_SOURCE = r"(?:documents?|passages?|texts?|pages?|sources?|context|handbook|excerpts?)"
_NOT = r"(?:do(?:es)? ?n[o']t|did ?n[o']t|can ?(?:no|')t|could ?n[o']t|is ?n[o']t|are ?n[o']t|not|no)"
DECLINES = re.compile(
    rf"\b{_SOURCE}(?: \w+){{0,3}} {_NOT} (?:\w+ ){{0,2}}(?:say|state|mention|answer|tell|contain|hold|include|provide|specify|give|cover)"
    rf"|\b(?:none|neither|nothing|no part) (?:of|in) (?:the|these|those)? ?{_SOURCE}"
    rf"|\bno {_SOURCE}\b.{{0,40}}\b(?:found|says?|mentions?|answers?|states?)"
    rf"|\b{_NOT} (?:\w+ ){{0,3}}(?:in|from|by) (?:any of )?(?:the|these|those|this) (?:\w+ )?{_SOURCE}\b"
    rf"|\b(?:I|we) (?:can ?(?:no|')t|can not|could not|am unable to|do(?: not|n't)) (?:answer|say|tell|know|find)\b",
    re.IGNORECASE,
)


def declines(answer: str) -> bool:
    """Whether an answer refuses: one of its first two sentences says that it is not in the documents, and it cites nothing there."""
    opening = re.split(r"(?<=[.!?。])\s+", answer.replace("’", "'").strip(), maxsplit=2)[:2]
    return any(DECLINES.search(sentence) and not re.search(r"\[\d", sentence) for sentence in opening)
