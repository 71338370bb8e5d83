"""Text from elsewhere as something to look at: what would move a cursor, ring, colour, hide or turn text round is shown instead."""

from __future__ import annotations

import re

# C0 and C1 controls, DEL; what turns the direction of writing (Trojan Source, CVE-2021-42574); what is not seen at all; halves of
# surrogate pairs, which no terminal can be sent.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_KEPT = "\n\t"


def visible(text: str, *, one_line: bool = False) -> str:
    """The text with every such character as its code (`\\x1b`, `\\u202e`).

    Args:
        one_line: line breaks and tabs as their codes, too: for names.
    """

    def code(match: re.Match[str]) -> str:
        character = match[0]
        if character in _KEPT and not one_line:
            return character
        return (
            character.encode("unicode_escape").decode()
            if not 0xD800 <= ord(character) < 0xE000
            else f"\\u{ord(character):04x}"
        )

    return _UNSEEN.sub(code, text)
