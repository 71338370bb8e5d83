"""Bytes to text: a byte order mark wins over everything, then what one was told; UTF-16 without a mark shows by its zeros."""

from __future__ import annotations

import codecs
import io
from typing import Any

MARKS = (  # the longer first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
DETECT = "detect"
START = 1 << 16  # bytes by which an encoding is told


def codec(name: str) -> str:
    """What Python calls a text codec, or `detect`.

    Raises:
        ValueError: it has none of that name.
    """
    if name == DETECT:
        return name
    try:
        b" ".decode(name, "replace")  # base64 and its like are codecs, too, but not of text
        return codecs.lookup(name).name
    except (LookupError, UnicodeError, ValueError):
        raise ValueError(f"Python has no text codec `{name}`; `detect` finds out which") from None


def told_by_start(start: bytes) -> tuple[str, int] | None:
    """The encoding that the first bytes of a text prove, and how many of them are its mark.

    Without a mark, text in UTF-16 or UTF-32 that begins with ASCII has zeros between its characters (as RFC 4627 tells JSON).
    """
    for mark, name in MARKS:
        if start.startswith(mark):
            return name, len(mark)
    zeros = tuple(byte == 0 for byte in start[:8])
    patterns = {
        (False, True, True, True) * 2: "utf-32-le", (True, True, True, False) * 2: "utf-32-be",
        (False, True) * 4: "utf-16-le", (True, False) * 4: "utf-16-be",
    }  # fmt: skip
    return (patterns[zeros], 0) if zeros in patterns else None


def looks_like(data: bytes, html: bool = False) -> str:
    """The encoding that bytes which are not UTF-8 claim (HTML) or seem to be in, by Python's name for it."""
    from resiliparse.parse.encoding import detect_encoding  # uchardet, as browsers have it  # pyright: ignore[reportMissingModuleSource]

    named = detect_encoding(data, html5_compatible=True, from_html_meta=html) or "utf-8"
    try:
        return codecs.lookup(named).name
    except LookupError:
        return "utf-8"


def decode(data: bytes, encoding: str = "utf-8") -> str:
    """The text of bytes, without a byte order mark.

    Args:
        encoding: what it is in unless its first bytes prove another; `detect` for UTF-8 or else what it looks like.

    Raises:
        UnicodeDecodeError: it is not.
    """
    if proven := told_by_start(data[:8]):
        name, mark = proven
        return data[mark:].decode(name)
    if encoding != DETECT:
        return data.decode(encoding)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        if (found := looks_like(data)) == "utf-8":
            raise
        return data.decode(found)


class Transcoded(io.RawIOBase):
    """A file of bytes in any encoding as one in UTF-8. Where a byte can't be decoded, `UnicodeDecodeError` comes at that read."""

    def __init__(self, raw: Any, encoding: str) -> None:
        self.raw = raw
        self.decoder = codecs.getincrementaldecoder(encoding)()
        self.held = b""
        self.done = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.held and not self.done:
            block: bytes = self.raw.read(1 << 20)
            self.done = not block
            self.held = self.decoder.decode(block, self.done).encode("utf-8", "surrogatepass")
        size = min(len(buffer), len(self.held))
        buffer[:size] = self.held[:size]
        self.held = self.held[size:]
        return size


def opened(raw: Any, encoding: str = "utf-8") -> tuple[Any, str]:
    """A file of lines as UTF-8 or another encoding that writes line ends as ASCII does, and which; its mark is skipped.

    Offsets in a file that is in UTF-16 or UTF-32 count the bytes it would have in UTF-8.
    """
    buffered = raw if hasattr(raw, "peek") else io.BufferedReader(raw, START)
    start = bytes(buffered.peek(8))[:8]
    name, mark = told_by_start(start) or (encoding, 0)
    if mark:
        buffered.read(mark)
    if name.replace("_", "-").startswith(("utf-16", "utf-32")):
        return io.BufferedReader(Transcoded(buffered, name), START), "utf-8"
    return buffered, name
