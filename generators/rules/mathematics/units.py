r"""An amount and its unit: `3\text{ cm}`, `3 \mathrm{~cm}^2`, `3 square centimeters`, `45^\circ`, `$3`, `60 miles per hour`.

Units are compared by name, not converted: 3 m and 300 cm are two answers to "how many centimeters".
"""

from __future__ import annotations

import re

from generators.rules.mathematics import numbers

_BASES = {
    "m": "meter metre", "g": "gram gramme", "l": "liter litre", "s": "second sec", "h": "hour hr", "min": "minute", "in": "inch inche",
    "ft": "foot feet", "mi": "mile", "yd": "yard", "lb": "pound", "oz": "ounce", "$": "dollar usd", "€": "euro eur", "£": "gbp", "¥": "yen jpy", "¢": "cent",
    "°": "degree deg", "rad": "radian", "mi/h": "mph", "km/h": "kph kmh", "n": "newton", "j": "joule", "w": "watt", "v": "volt", "k": "kelvin", "°c": "celsius", "°f": "fahrenheit",
    "day": "", "week": "", "month": "", "year": "",
}  # fmt: skip
_PREFIXES = {"k": "kilo", "c": "centi", "m": "milli", "d": "deci", "": ""}
_NAMES = {
    short + unit: short + unit
    for unit in _BASES
    for short in (_PREFIXES if unit in ("m", "g", "l") else [""])
} | {
    long + name: short + unit
    for unit, names in _BASES.items()
    for name in names.split()
    for short, long in (_PREFIXES.items() if unit in ("m", "g", "l") else [("", "")])
}  # fmt: skip
_SYMBOLS = {*_NAMES.values()}
_POWERS = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}
# Words after a number that make another one of it.
_FACTORS = re.compile(
    r"\b(?:hundred|thousand|million|billion|trillion|dozen|pi|factorial|squared|cubed|half|halves|quarters?"
    r"|(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth|millionth)s?|more|less|than|times|over|plus|minus"
    r"|e|i|alpha|beta|gamma|delta|theta|lambda|sigma|omega|sinh?|cosh?|tanh?|log)\b",
    re.IGNORECASE,
)

_TEXT = r"\\(?:text|mathrm|mbox|textrm|operatorname)\{(?:[^{}]|\{-?\d\})*\}"
_SET = re.compile(rf"(?P<amount>.+?)\s*(?P<unit>{_TEXT}(?:\s*(?:/|\\cdot|\^\s?\{{?-?\d\}}?|{_TEXT}))*)", re.DOTALL)
_DEGREES = re.compile(
    rf"(?P<amount>.+?)\s*(?:\^\s?\\circ|\^\s?\{{\s?\\circ\s?\}}|°)\s*(?P<scale>[CF]|{_TEXT})?", re.DOTALL
)
_MONEY = re.compile(r"(?P<sign>[-+]?)\s?(?P<unit>[$€£¥])\s?(?P<amount>-?[\d.].*)")
_BARE = re.compile(r"(?P<amount>.*\d\}?)(?P<space>\s*)(?P<unit>[$€£¥¢]|[A-Za-z][A-Za-z /.^{}\d]*)")


def split(text: str, letters: bool = False) -> tuple[str, str]:
    """(amount, unit); the unit is empty where there is none, or where it is a factor (million). A percentage has none.

    Args:
        text: in the notation of `notation.plain`.
        letters: whether a letter after a space is a unit, as in `5 m`, and no variable.
    """
    text = re.sub(rf"\\frac\{{({_TEXT})\}}\{{({_TEXT})\}}", r"\1/\2", text)
    if match := _DEGREES.fullmatch(text):
        scale = _words(match["scale"] or "")
        return match["amount"], "°" + scale if scale in ("c", "f", "") else normal(scale)
    if (match := _MONEY.fullmatch(text)) and numbers.exact(match["amount"]):
        return match["sign"] + match["amount"], match["unit"]
    if match := _SET.fullmatch(text):
        name = _words(match["unit"])
        if name in ("percent", "per cent", "%"):
            return f"{match['amount']}%", ""
        if not name:
            return match["amount"], ""
        of_a_number = numbers.exact(match["amount"]) is not None and not _FACTORS.search(name)
        return (match["amount"], normal(name)) if of_a_number or _known(name) else (text, "")
    match = _BARE.fullmatch(text)
    if (number := numbers.exact(text)) and number.percent:
        return text, ""
    if not match or not numbers.exact(match["amount"]) or _FACTORS.search(match["unit"]):
        return text, ""
    first = re.match(r"[A-Za-z]+", match["unit"])
    length = len(first.group()) if first else 2
    if _known(match["unit"]) and (length > 1 or (letters and match["space"])):
        return match["amount"], normal(match["unit"])
    # A word is no product of its letters.
    words = re.fullmatch(r"[A-Za-z]{4,}(?: [A-Za-z]+)*", match["unit"])
    return (match["amount"], normal(match["unit"])) if words and match["space"] else (text, "")


def normal(name: str) -> str:
    """A unit's symbol: `centimeters`, `cm`; `square feet`, `ft^2`; `miles per hour`, `mph`. Other words as they are, in the singular."""
    parts = re.split(r"\s*(?:/|\bper\b)\s*", _words(name))
    return "/".join(" ".join(_factors(part)) for part in parts).replace("° °", "°")  # degrees Celsius


def same(unit: str, other: str) -> bool:
    """Whether two units may stand for one: they are equal, or one is missing. Both pounds are called so."""
    return not unit or not other or unit == other or {unit, other} == {"£", "lb"}


def _known(name: str) -> bool:
    parts = re.split(r"\s*(?:/|\bper\b)\s*", _words(name))
    return all(re.sub(r"\^-?\d$", "", factor) in _SYMBOLS for part in parts for factor in _factors(part) or [""])


def _factors(words: str) -> list[str]:
    factors: list[str] = []
    power = ""
    for word in words.split():
        if word in _POWERS:
            power = _POWERS[word]
        elif word == "squared" and factors:
            factors[-1] += "^2"
        else:
            base, _, raised = word.partition("^")
            singular = base[:-1] if len(base) > 2 and base.endswith("s") and not base.endswith("ss") else base
            unit = _NAMES.get(base) or _NAMES.get(singular) or singular
            factors.append(unit + (f"^{raised}" if raised else power))
            power = ""
    return factors


def _words(text: str) -> str:
    """What is written, without how it is set."""
    text = re.sub(r"\\(?:text|mathrm|mbox|textrm|operatorname)\{((?:[^{}]|\{-?\d\})*)\}", r"\1", text)
    text = re.sub(r"\s*\^\s*\{?\s*(-?\d)\s*\}?", r"^\1", text.replace(r"\cdot", " ").replace(".", " "))
    return " ".join(text.split()).casefold()
