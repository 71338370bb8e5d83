"""Changed bytes: flipped, cut, doubled, and with pieces that parsers stumble over."""

from __future__ import annotations

import random

PIECES = [
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\\ud800", b"\\u0000", b"\r", b"\n", b'"', b"'", b"[" * 500, b"]" * 500, b"{" * 500, b"(" * 500,
    b'{"a":' * 500, b"9" * 500, b"-1", b"1e400", b"NaN", b"null", b"true", b"0x7fffffff", b"18446744073709551616", b"2147483648",
    b"{{", b"}}", b"{% for i in range(100000) %}", b"{% endfor %}", b"{{ 'a' * 3000000000 }}", b"&a [*a]", b"*a", b"<<: ", b"!!python/object:os.system",
    b".inf", b".nan", b"2020-13-45", b"%s%n", b"../../../", b"/dev/zero", b"\x1b[31m", "\u202e".encode(), b"<div>" * 200, b"a" * 5000, b", ", b": ",
    b"\xff\xff\xff\x7f", b"\x80\x80\x80\x80\x08", b"PAR1", b"ARROW1",
]  # fmt: skip
LARGEST = 200_000


def mutated(seeds: list[bytes], draw: random.Random) -> bytes:
    """One of the seeds after some changes."""
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 2, 3, 5, 8))):
        at = draw.randrange(len(data) + 1)
        end = min(len(data), at + draw.choice((1, 2, 4, 16, 100, 1000)))
        match draw.randrange(8):
            case 0 if data:
                data[at % len(data)] ^= 1 << draw.randrange(8)
            case 1 if data:
                data[at % len(data)] = draw.randrange(256)
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = data[at:end] * draw.choice((1, 2, 50))
            case 4:
                data[at:at] = draw.choice(PIECES)
            case 5:
                data[at:end] = draw.choice(PIECES)
            case 6:
                other = draw.choice(seeds)
                begin = draw.randrange(len(other) + 1)
                data[at:end] = other[begin : begin + 200]
            case _:
                del data[at:]
    return bytes(data[:LARGEST])
