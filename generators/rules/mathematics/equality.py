r"""Whether a solution ends in the right mathematical answer: `\boxed{x}` is right for the reference x, and for what equals it.

Both are brought to one notation first (`notation.py`), and units are set aside (`units.py`). Then, in this order: the same text;
numbers, as exact fractions (`numbers.py`); tuples, intervals, sets and lists, member by member; words; and what is left
symbolically, by math-verify (HuggingFace) in a process of its own (`symbolic_equality.py`).

- A pair and an interval keep their brackets and their order: `(1,2)` is neither `[1,2]` nor `(2,1)`. A set's members, and those
  of a list without brackets, come in any order.
- A unit may be missing on one side; two different ones are two answers.
- `x` and `X` are two variables; a word may be in either case.
"""

from __future__ import annotations

import re
from functools import lru_cache

from generators.rules.bounded_process import BoundedProcess
from generators.rules.mathematics import numbers, units
from generators.rules.mathematics.notation import plain

READABLE = 5_000  # characters of an answer that is more than a text
LONGEST = 500  # characters of an expression that is compared symbolically
CPU_S = 3.0  # for one comparison
OPENED = 2_000_000  # characters that are looked through for boxes in boxes

_OPENING = re.compile(r"\$\$|(?<![\\\d])\$(?!\s)|\\[(\[]")
_INLINE = re.compile(r"\$([^$\n]+?)(?<![\s\\])\$(?!\d)")
_CLOSING = {"$$": "$$", r"\(": r"\)", r"\[": r"\]"}
_NAMED = re.compile(
    r"\(?(?P<names>[A-Za-z](?:\s*,\s*[A-Za-z])+)\)?\s*=\s*(?=[(\[])|(?P<name>[A-Za-z])\s*\\in(?![A-Za-z])\s*"
)
_BUILT = re.compile(
    r"\\\{\s*(?P<name>[A-Za-z])\s*(?:\\in\s*\\(?:mathbb\{R\}|R)\s*)?(?::|\||\\mid|\\colon)(?P<condition>.*[<>=].*|.*\\[lgn]e.*)\\\}"
)
_OR = re.compile(r"\\text\{\s*or\s*\}|\bor\b")
_RELATION = re.compile(r"[<>]|\\(?:le|ge|lt|gt)(?![A-Za-z])")
_OPEN, _CLOSE = {"(", "[", "{", r"\{", r"\langle"}, {")", "]", "}", r"\}", r"\rangle"}
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|.", re.DOTALL)


def is_right(completion: str, reference: str) -> bool:
    """Whether a solution's final answer is the reference's, which may be a solution itself."""
    for answer in (reference, reference.strip()):
        box = f"\\boxed{{{answer}}}"
        at = completion.rfind(box)
        if at >= 0 and "\\boxed" not in completion[at + len(box) :]:
            return True  # also what no reading of braces understands
    wanted = _innermost(reference)
    found = final_answer(completion)
    return bool(wanted) and found is not None and equal(found, wanted)


def final_answer(text: str) -> str | None:
    r"""What a solution ends in: what it marks by `\boxed{}` or `####`; else the formula that comes last, all of it if it has
    no words; else its last number."""
    if numbers.marked(text) is not None:
        return _innermost(text) or None
    formulas = _formulas(text)
    if formulas and not numbers.NUMBER.search(text, formulas[-1][1]):
        return formulas[-1][0].strip()
    if not re.search(r"[^\W\d_]{2}", re.sub(r"\\[A-Za-z]+", " ", text)):
        return text.strip() or None
    found = list(numbers.NUMBER.finditer(text))
    return found[-1].group().strip() if found and _stands_alone(found[-1]) else None


def equal(a: str, b: str, tolerance: float = 0.0) -> bool:
    """Whether two final answers are equal.

    Args:
        tolerance: error of a number relative to `b` that is allowed, for what a program printed.
    """
    if max(len(a), len(b)) > READABLE:
        return a.split() == b.split()
    if a.split() == b.split():
        return bool(a.split())
    a, b = plain(a), plain(b)
    if a == b:
        return bool(a)
    ours, theirs = numbers.exact(a), numbers.exact(b)
    (amount, unit), (other, other_unit) = units.split(a), units.split(b)
    if bool(unit) != bool(other_unit):  # where one has a unit the m of `5 m` is one, and else a variable
        (amount, unit), (other, other_unit) = units.split(a, bool(other_unit)), units.split(b, bool(unit))
    if (amount, other) != (a, b):
        return units.same(unit, other_unit) and equal(amount, other, tolerance)
    if ours and theirs:
        return ours.equals(theirs, tolerance)
    (a, name), (b, other_name) = _named(a), _named(b)
    if name and other_name and name != other_name:
        return False
    if _is_text(a) and _is_text(b) and not ("," in a and "," in b):
        return a.casefold() == b.casefold() or (_is_product(a) and sorted(a) == sorted(b))
    return _collections(a, b, tolerance)


def _formulas(text: str) -> list[tuple[str, int]]:
    r"""What stands in `$`, `$$`, `\(\)` or `\[\]`, each with where it ends. Linear in the text, whatever opens and is not closed."""
    found, at, unclosed = list[tuple[str, int]](), 0, set[str]()
    while opening := _OPENING.search(text, at):
        mark, at = opening.group(), opening.start() + 1
        if mark == "$":
            if inline := _INLINE.match(text, opening.start()):
                found.append((inline[1], at := inline.end()))
        elif mark not in unclosed:
            end = text.find(_CLOSING[mark], opening.end() + 1)
            if end < 0:
                unclosed.add(mark)
            else:
                at = end + 2
                found.append((text[opening.end() : end], at))
    return found


def _innermost(text: str) -> str:
    left = OPENED
    while left > 0 and (found := numbers.marked(text)) is not None:
        left -= len(text)
        text = found
    return text.strip()


def _stands_alone(match: re.Match[str]) -> bool:
    """Whether a number in a text is no part of an expression: the 2 of `\\sqrt{2}` is none to end in."""
    before, after = match.string[: match.start()], match.string[match.end() :]
    return not (before.endswith(tuple("{^_*/+,[\\")) or after.startswith(tuple("}^_*/+]\\")))


def _named(text: str) -> tuple[str, str]:
    r"""`(x, y) = (1, 2)` -> (1, 2); `x \in [1, 2]` -> [1, 2]; and the names. `\{x : x > 2\}` -> x > 2."""
    if built := _BUILT.fullmatch(text):
        return built["condition"].strip(), built["name"]
    match = _NAMED.match(text)
    return (text[match.end() :], "".join((match["names"] or match["name"]).split())) if match else (text, "")


def _is_text(text: str) -> bool:
    return bool(re.search(r"[^\W\d_]{2}", text)) and not re.search(r"[\d\\^_=+*/<>|{}\[\]()]", text)


def _is_product(text: str) -> bool:
    """Whether letters are variables side by side (xy, ab) and no word."""
    return bool(re.fullmatch(r"[b-df-hj-np-tv-z]+|[a-df-hj-np-tv-z]{2}", text))


# -- collections -----------------------------------------------------------------------------------------------------------


def _collections(a: str, b: str, tolerance: float) -> bool:
    pieces, others = _union(a), _union(b)
    if len(pieces) > 1 and len(others) > 1:
        return _same_members(pieces, others, tolerance)
    (kind, members), (other, theirs) = _members(a), _members(b)
    if kind == "list" and other == "()":
        kind, members = _assigned(members)
    elif kind == "()" and other == "list":
        other, theirs = _assigned(theirs)
    if not kind and not other:
        return _symbolic(a, b)
    if not kind or not other:  # +-2 and 2, -2; an interval and its inequality; but not a pair and an expression
        loose, single = (kind or other), (b if kind else a)
        return (
            loose in ("list", "{}") or bool(re.search(r"[<>]|\\(?:l|g|n)?e?q?\b|\\(?:cup|in)\b", single))
        ) and _symbolic(a, b)
    if kind in ("list", "{}") and other in ("list", "{}"):
        return _same_members(members, theirs, tolerance)
    return kind == other and len(members) == len(theirs) and all(
        equal(one, its, tolerance) for one, its in zip(members, theirs, strict=True)
    )  # fmt: skip


def _assigned(members: list[str]) -> tuple[str, list[str]]:
    """`x = 1, y = 2` -> the pair of them, in the order of the names. Any other list is one still."""
    pairs = sorted(tuple(map(str.strip, member.split("=", 1))) for member in members if "=" in member)
    names = {name for name, *_ in pairs}
    if len(names) < len(members) or any(len(name) != 1 for name in names):
        return "list", members
    return "()", [value for _, value in pairs]


def _union(text: str) -> list[str]:
    r"""The intervals that are joined by `\cup`, or the inequalities by "or"."""
    either = _OR.split(text)
    return [one.strip() for one in either] if all(map(_RELATION.search, either)) else _split(text, r"\cup")


def _same_members(a: list[str], b: list[str], tolerance: float) -> bool:
    def within(these: list[str], those: list[str]) -> bool:
        return all(any(equal(one, its, tolerance) for its in those) for one in these)

    return within(a, b) and within(b, a)


def _members(text: str) -> tuple[str, list[str]]:
    """The brackets and members of a tuple, an interval, a set ("{}") or a bare list ("list"); no kind if it is none."""
    tokens = _TOKEN.findall(text)
    if len(tokens) > 1 and tokens[0] in (_OPEN - {"{"}) and tokens[-1] in (_CLOSE - {"}"}):
        depth = 0
        for place, token in enumerate(tokens):
            depth += (token in _OPEN) - (token in _CLOSE)
            if not depth and place < len(tokens) - 1:
                break
        else:
            members = _split("".join(tokens[1:-1]), ",", ";")
            kind = (tokens[0] + tokens[-1]).replace("\\", "")
            if len(members) > 1 or kind == "{}":
                return kind, _signed([one for one in members if one]) if kind == "{}" else members
            return "", []
    joined = re.sub(r",?\s*(?:\\text\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)\s*", ",", text)
    members = _signed(_split(joined, ",", ";"))
    return ("list", members) if len(members) > 1 and all(members) else ("", [])


def _signed(members: list[str]) -> list[str]:
    r"""Each `\pm` as two: its upper signs and its lower ones."""
    upper, lower = {r"\pm": "+", r"\mp": "-"}, {r"\pm": "-", r"\mp": "+"}
    sign = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")
    return [
        sign.sub(lambda found, signs=signs: signs[found.group()], one)
        for one in members
        for signs in ((upper, lower) if sign.search(one) else (upper,))
    ]


def _split(text: str, *separators: str) -> list[str]:
    depth, pieces = 0, [""]
    for token in _TOKEN.findall(text):
        depth += (token in _OPEN) - (token in _CLOSE)
        if not depth and token in separators:
            pieces.append("")
        else:
            pieces[-1] += token
    return [piece.strip() for piece in pieces]


# -- symbols ---------------------------------------------------------------------------------------------------------------


def _symbolic(a: str, b: str) -> bool:
    if max(len(a), len(b)) > LONGEST:
        return False
    if any(re.search(r"\d\s*_|\d\s+\d", one) for one in (a, b)):  # other bases; two numbers that nothing joins
        return False
    said, others = (sorted(" ".join(t.split()) for t in re.findall(r"\\text\{([^{}]*)\}", one)) for one in (a, b))
    if said != others:
        return False
    if any(_is_text(one) and re.search(r"[^\W\d_]{4}", one) for one in (a, b)):
        return False  # a word is no product of its letters
    ours, theirs = (set(re.findall(r"[^\W\d_]", re.sub(r"\\[A-Za-z]+", " ", one))) for one in (a, b))
    if ours != theirs and {one.lower() for one in ours} == {one.lower() for one in theirs}:
        return False  # math-verify reads X as x
    return _decided(a, b)


@lru_cache(1 << 14)
def _decided(a: str, b: str) -> bool:
    return SOLVER.ask([a, b]) is True


SOLVER = BoundedProcess("generators.rules.mathematics.symbolic_equality", CPU_S)
