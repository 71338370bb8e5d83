"""Whether a statement follows from the passages it cites, found out by reading, without a model.

Looked at, in this order; the first that fails is the reason:

    quote      what stands in quotation marks (three words or more) stands in the passages, word for word
    number     every number stands there, whether in digits or in words, and with the same unit
    name       every capitalised word stands there, or in the question
    words      enough of it stands near each other (the first letters of words: `opened` is `opens`)
    polarity   of its clauses each has a `not`, `never`, `without` where the clause it follows from has one
    opposite   ... and not `before` where that has `after`, `closed` where that has `open`

Texts are compared in their normal form, by the words of `engine.text.words`. A statement that says the same in quite other words fails, and
a false one made of the passage's own words passes: where that matters, a model judges as well (`Entails`). English; in other
languages quotes, numbers, names and words are compared, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from engine.text.normal_form import normal_form
from engine.text.words import words
from generators.grounded.citations import statements

Entails = Callable[[str, str], bool]  # (premise, statement): whether the second follows from the first

COVERAGE = 0.5  # share of a statement's words that stand in the passages; see `benchmarks.parts.citations` for how it was chosen
NEAR = 3  # sentences in a row that have to hold a statement's words
ALIGNED = 0.6  # share of a clause's words, for another to be about the same

_SMALL = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
)
_TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")
_ORDINAL = {
    "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10, "eleventh": 11, "twelfth": 12,
    "twentieth": 20, "thirtieth": 30, "dozen": 12, "once": 1, "twice": 2,
}  # fmt: skip
_WORD_VALUE = {
    **{word: value for value, word in enumerate(_SMALL)},
    **{word: 10 * value for value, word in enumerate(_TENS, 2)},
    **_ORDINAL,
}
# "one" and its like are no claims: "one of them", "at one go".
_UNCLAIMED = {"zero", "one", "once", "dozen"}
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+(?:-[^\W\d_]+)?")
_UNITS = words(
    "second minute hour day night week fortnight month year percent krone kroner crown pound euro dollar penny pence mark metre "
    "meter kilometre kilometer mile millimetre centimetre gram kilogram kilo tonne litre liter degree page point"
)
_SYMBOL = {"%": "percent", "€": "euro", "£": "pound", "$": "dollar", "°": "degree", "kr": "krone", "kg": "kilogram", "km": "kilometre",
           "mm": "millimetre", "cm": "centimetre", "g": "gram", "m": "metre", "l": "litre", "h": "hour", "min": "minute"}  # fmt: skip
_NEGATIONS = frozenset(
    words(
        "not no never nobody none nothing neither nor without cannot nowhere isn aren doesn don didn won wasn weren shouldn mustn couldn"
    )
)
_OPPOSITES = [
    ("before", "after"), ("open", "closed"), ("opens", "closes"), ("more", "less"), ("more", "fewer"), ("above", "below"),
    ("over", "under"), ("least", "most"), ("minimum", "maximum"), ("first", "last"), ("earliest", "latest"), ("paid", "unpaid"),
    ("always", "never"), ("allowed", "forbidden"), ("allowed", "prohibited"), ("inside", "outside"), ("morning", "evening"),
    ("morning", "afternoon"), ("left", "right"), ("north", "south"), ("east", "west"), ("up", "down"), ("increase", "decrease"),
    ("start", "end"), ("begin", "end"), ("begins", "ends"), ("starts", "ends"), ("required", "optional"), ("included", "excluded"), ("accept", "refuse"), ("hot", "cold"),
    ("cheaper", "dearer"), ("buy", "sell"), ("early", "late"), ("red", "green"), ("daily", "weekly"), ("weekly", "monthly"),
    ("monthly", "yearly"), ("oldest", "newest"), ("largest", "smallest"), ("highest", "lowest"), ("permanent", "temporary"),
]  # fmt: skip
_STOP = frozenset(
    words(
        "a an and are as at be been but by can do does for from had has have he her his how i if in into is it its may might more must of "
        "on one or our out she should so such than that the their them then there these they this those to was we were what when where "
        "which while who whom whose why will with would you your also any all each every some only same very too up about s t re ve ll d m "
        "not no"
    )
)
_QUOTED = re.compile(r"[\"“”«»„]([^\"“”«»„]{3,400})[\"“”«»„]")
_BROKEN_LINE = re.compile(r"(?<=\S)[ \t]*\n(?![ \t]*(?:\n|[-*+|#>]|\d+[.)]))")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)]*\s+|(?<=[。！？])|\n+")
_CLAUSE_END = re.compile(
    r"[,;:–—](?=\s)|\s(?:and|but|so that|which|who|whether|because|although|while)\s", re.IGNORECASE
)


@dataclass(frozen=True)
class Support:
    """What came of a check: `reason` is empty where the statement is supported, else the name of what failed; `detail` in words."""

    reason: str = ""
    detail: str = ""

    def __bool__(self) -> bool:
        return not self.reason


def support(statement: str, passages: Sequence[str], question: str = "", coverage: float = COVERAGE) -> Support:
    """Whether a statement follows from the passages, taken together.

    Args:
        question: that it answers; names in it need not stand in the passages.
        coverage: least share of its words and numbers, in [0, 1], that stand near each other there.
    """
    text = "\n".join(passages)
    said = words(text)
    for quote in _QUOTED.findall(statement):
        wanted = words(quote)
        if len(wanted) >= 3 and not _contains(said, wanted):
            return Support("quote", f"“{quote.strip()}” stands in none of the cited passages")
    stems, known, units = {_stem(word) for word in said}, _numbers(text), _units(text)
    for number, spelled in _numbers(statement).items():
        if number not in known:
            return Support("number", f"{spelled} stands in none of the cited passages")
    for number, unit in _units(statement):
        there = {one for value, one in units if value == number}
        if unit not in there and (there or _stem(unit) not in stems):
            return Support("number", f"{number} is not of {unit} in the cited passages, but of {_listed(there)}")
    context = stems | {_stem(word) for word in words(question)}
    for name in _names(statement):
        if not all(_stem(part) in context for part in words(name)):
            return Support("name", f"{name} stands in none of the cited passages")
    share = _coverage(_claimed(statement), passages)
    if share < coverage:
        return Support("words", f"{share:.0%} of it stands together in the cited passages, expected {coverage:.0%}")
    return _against(statement, passages)


def _listed(units: set[str]) -> str:
    return ", ".join(sorted(units)) or "nothing"


def _coverage(claimed: set[str], passages: Sequence[str]) -> float:
    """The share of words that stands within `NEAR` sentences of a passage, or of each of several passages together."""
    if not claimed:
        return 1.0
    found = set[str]()
    for passage in passages:
        each = [_claimed(sentence) for sentence in sentences(passage)]
        windows = (set[str]().union(*each[i : i + NEAR]) & claimed for i in range(len(each)))
        found |= max(windows, key=len, default=set[str]())
    return len(found) / len(claimed)


def first_unsupported(answer: str, passages: Sequence[str], question: str = "", coverage: float = COVERAGE) -> Support:
    """The first thing wrong with an answer: a statement that cites nothing (`uncited`), or what was not shown (`unresolved`), or does
    not follow from what it cites.

    Args:
        passages: as shown: the first is [1].
    """
    made = statements(answer)
    if not made:
        return Support("empty", "it says nothing")
    for one in made:
        if not one.cited:
            return Support("uncited", f"“{one.text[:200]}” cites no passage")
        beyond = [number for number in one.cited if not 1 <= number <= len(passages)]
        if beyond:
            return Support("unresolved", f"[{beyond[0]}] is none of the {len(passages)} passages shown")
        found = support(one.text, [passages[number - 1] for number in one.cited], question, coverage)
        if not found:
            return Support(found.reason, f"“{one.text[:200]}”: {found.detail}")
    return Support()


def _against(statement: str, passages: Sequence[str]) -> Support:
    """Whether a clause says the opposite of the clause of the passages that it is nearest to."""
    clauses = [(clause, _claimed(clause)) for passage in passages for clause in _clauses(passage)]
    for clause in _clauses(statement):
        claimed = _claimed(clause)
        if not claimed or not clauses:
            continue
        # Of two that are as near the shorter one: it says less besides.
        nearest, shared = max(
            ((text, len(own & claimed) - len(own) / 1000) for text, own in clauses), key=lambda one: one[1]
        )
        ours, theirs = set(words(clause)), set(words(nearest))
        aligned = shared >= ALIGNED * len(claimed) - 0.1
        if bool(_NEGATIONS & ours) != bool(_NEGATIONS & theirs) and (aligned or _NEGATIONS & ours):
            return Support("polarity", f"the passage says: “{nearest.strip()[:200]}”")
        for pair in _OPPOSITES if aligned else ():
            for word, other in (pair, pair[::-1]):
                if word in ours and other in theirs and word not in theirs and other not in ours:
                    return Support("opposite", f"`{word}`, where the passage says: “{nearest.strip()[:200]}”")
    return Support()


def sentences(text: str) -> list[str]:
    """Sentences, rows of a table and items of a list; lines that were broken for their width are joined."""
    return [one for one in _SENTENCE_END.split(_BROKEN_LINE.sub(" ", text)) if any(c.isalnum() for c in one)]


def _clauses(text: str) -> list[str]:
    return [
        part for sentence in sentences(text) for part in _CLAUSE_END.split(sentence) if any(c.isalnum() for c in part)
    ]


def _claimed(text: str) -> set[str]:
    """What a text claims: its words as `_stem` has them, and its numbers."""
    return {*_content(text), *_numbers(text)}


def _numbers(text: str) -> dict[str, str]:
    """The numbers in a text, each in one spelling -> as it stands there."""
    found: dict[str, str] = {}
    for token in _NUMBER.findall(normal_form(text)):
        if token[0].isdigit():
            found.setdefault(_digits(token), token)
        elif token not in _UNCLAIMED and (value := _worded(token)) is not None:
            found.setdefault(str(value), token)
    return found


def _digits(token: str) -> str:
    """1,500 and 1500 are one number; 9:00 and 09:00 are one time; 4.50 and 4.5 one price."""
    if ":" in token:
        return ":".join(part.lstrip("0") or "0" for part in token.split(":"))
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", token):
        token = token.replace(",", "")
    if re.fullmatch(r"\d+\.\d+", token):
        token = token.rstrip("0").rstrip(".")
    return token.lstrip("0") or "0"


def _worded(token: str) -> int | None:
    head, _, tail = token.partition("-")
    if tail and head in _TENS and _WORD_VALUE.get(tail, 10) < 10:
        return _WORD_VALUE[head] + _WORD_VALUE[tail]
    return _WORD_VALUE.get(token if tail not in _UNITS else head)


_MEASURED = re.compile(
    r"(?P<before>[€£$]\s?)?(?P<number>\d+(?:[.,]\d+)*|[^\W\d_]+(?:-[^\W\d_]+)?)[\s-]?(?P<unit>%|€|£|°|[^\W\d_]+)?"
)


def _units(text: str) -> list[tuple[str, str]]:
    """The numbers in a text that are of something measured, with the unit in one spelling."""
    found = list[tuple[str, str]]()
    form, place = normal_form(text), 0
    while match := _MEASURED.search(form, place):
        number, unit, before = match["number"], match["unit"] or "", (match["before"] or "").strip()
        value = _digits(number) if number[0].isdigit() else None
        if value is None:
            head, _, tail = number.partition("-")
            if tail and _unit(tail) and head in _WORD_VALUE:
                value, unit = str(_WORD_VALUE[head]), tail
            elif (worded := _worded(number)) is not None and number not in _UNCLAIMED:
                value = str(worded)
        place = match.end("number")
        of = _SYMBOL.get(before, "") or _unit(unit)
        if value is not None and of:
            found.append((value, of))
    return found


def _unit(word: str) -> str:
    if word in _SYMBOL:
        return _SYMBOL[word]
    for form in (word, word.removesuffix("s"), word.removesuffix("es")):
        if form in _UNITS:
            return form
    return ""


def _names(text: str) -> list[str]:
    """Capitalised words: of those that begin a sentence only such as have another capital, or a capitalised word after them."""
    found = list[str]()
    for sentence in re.split(r"(?<=[.!?:])\s+|\n+", text):
        tokens = re.findall(r"[^\W\d_][\w'’-]*", sentence)
        for place, token in enumerate(tokens):
            bare = re.sub(r"['’]s$", "", token)
            if not bare[0].isupper() or bare in ("I", "I'm", "I'll"):
                continue
            later = place + 1 < len(tokens) and tokens[place + 1][0].isupper()
            if place or any(character.isupper() for character in bare[1:]) or (later and bare.lower() not in _STOP):
                found.append(bare)
    return found


def _content(text: str) -> list[str]:
    """The words that carry a text, without numbers, as `_stem` has them."""
    return [
        _stem(word) for word in words(text) if word not in _STOP and not word[0].isdigit() and _worded(word) is None
    ]


def _stem(word: str) -> str:
    """Its first five letters, or what is left of a shorter word without an ending: enough to find a word in another form."""
    for ending in ("ies", "es", "s", "ing", "ed", "y"):
        if len(word) - len(ending) >= 3 and word.endswith(ending):
            word = word[: -len(ending)]
            break
    return word[:5]


def _contains(sequence: Sequence[str], wanted: Sequence[str]) -> bool:
    size = len(wanted)
    return any(list(sequence[i : i + size]) == list(wanted) for i in range(len(sequence) - size + 1))


def stands_in(quote: str, passages: Iterable[str]) -> bool:
    """Whether a quote stands in one of the passages, word for word, in any spelling of the same letters."""
    wanted = words(quote)
    return bool(wanted) and any(_contains(words(passage), wanted) for passage in passages)
