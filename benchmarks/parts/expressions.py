r"""The judge of mathematics against expressions whose values are known, because they are written from the values.

Fifty expressions of each of ten kinds. Each comes in two writings of one value and one writing of another value, so that
`\boxed{x}` has to be right for x and for its other writing, and wrong for what is something else. math-verify, which is
asked the same, is told the reference in dollars, as it wants it.

    python -m benchmarks.parts.expressions
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

from engine.seeds import generator
from generators.rules.verify import verify

COUNT = 50  # of a kind
SQUAREFREE = (2, 3, 5, 6, 7, 10)


class Expression(NamedTuple):
    """An answer, another way to write it, and an answer that it is not."""

    kind: str
    text: str
    same: str
    other: str


class Draw:
    """Choices from a derived seed."""

    def __init__(self, *parts: str | int) -> None:
        self._generator = generator(*parts)

    def whole(self, low: int, high: int) -> int:
        """From low to high, both included, and never 0."""
        value = 0
        while not value:
            value = int(self._generator.integers(low, high + 1))
        return value

    def one(self, *items: Any) -> Any:
        return items[int(self._generator.integers(len(items)))]

    def order(self, items: list[Any]) -> list[Any]:
        return [items[i] for i in self._generator.permutation(len(items))]

    def several(self, count: int) -> list[int]:
        """Different whole numbers, from the least."""
        return sorted(self.order([n for n in range(-9, 21) if n])[:count])


Writings = tuple[list[str], list[str]]  # of a value; of values that differ from it


def roots(draw: Draw) -> Writings:
    """a + b sqrt(c), c free of squares; and cube roots."""
    a, b, c = draw.whole(-9, 9), draw.whole(2, 6), draw.one(*SQUAREFREE)
    if draw.one(True, False, False):
        same = [
            f"{b}\\sqrt[3]{{{c}}}",
            f"\\sqrt[3]{{{b**3 * c}}}",
            f"{b} \\cdot {c}^{{1/3}}",
            f"{b}({c})^{{\\frac{{1}}{{3}}}}",
        ]
        return same, [f"{b}\\sqrt{{{c}}}", f"{b + 1}\\sqrt[3]{{{c}}}", f"\\sqrt[3]{{{b * c}}}", f"-{b}\\sqrt[3]{{{c}}}"]
    same = [
        f"{a}+{b}\\sqrt{{{c}}}", f"{b}\\sqrt{{{c}}}{a:+}", f"{a} + \\sqrt{{{b * b * c}}}", f"{a}+{b}√{c}",
        f"{a}+\\frac{{{b * c}}}{{\\sqrt{{{c}}}}}", f"{a}+{b}\\sqrt {c}" if c < 10 else f"{a}+{b} \\sqrt{{{c}}}",
        f"{a}+{b}*sqrt({c})", f"\\frac{{{2 * a}+{2 * b}\\sqrt{{{c}}}}}{{2}}",
    ]  # fmt: skip
    return same, [
        f"{a}-{b}\\sqrt{{{c}}}", f"{a + 1}+{b}\\sqrt{{{c}}}", f"{a}+{b}\\sqrt{{{c + 11}}}", f"{a}+{b * c}", f"{a}+{b + 1}\\sqrt{{{c}}}"
    ]  # fmt: skip


def fractions(draw: Draw) -> Writings:
    bottom = draw.whole(2, 12)
    value = Fraction(draw.whole(-30, 30), bottom)
    while value.denominator == 1:
        value = Fraction(draw.whole(-30, 30), bottom)
    return _fraction(value, draw), [
        text
        for wrong in (1 / value, -value, value + 1, value * 10)
        if wrong != value
        for text in _fraction(wrong, draw)
    ]


def _fraction(value: Fraction, draw: Draw) -> list[str]:
    sign, top, bottom = "-" if value < 0 else "", abs(value.numerator), value.denominator
    factor = draw.whole(2, 4)
    ways = [
        f"{sign}\\frac{{{top}}}{{{bottom}}}", f"{sign}\\dfrac{{{top}}}{{{bottom}}}", f"{sign}\\tfrac{{{top}}}{{{bottom}}}",
        f"{sign}{top}/{bottom}", f"{sign}\\frac{{{top * factor}}}{{{bottom * factor}}}", f"\\frac{{{sign}{top}}}{{{bottom}}}",
        f"{sign}{{{top} \\over {bottom}}}", f"{sign} \\frac {{{top}}} {{{bottom}}}", f"\\left({sign}\\frac{{{top}}}{{{bottom}}}\\right)",
    ]  # fmt: skip
    if top < 10 and bottom < 10:
        ways.append(f"{sign}\\frac{top}{bottom}")
    if top > bottom > 1:
        ways.append(f"{sign}{top // bottom}\\frac{{{top % bottom}}}{{{bottom}}}")
    if 1000 % bottom == 0:
        ways.append(f"{sign}{float(abs(value))}")
    return ways


def tuples(draw: Draw) -> Writings:
    members = draw.order(draw.several(draw.one(2, 2, 3)))
    names = ", ".join("xyz"[: len(members)])
    half = ", ".join([*map(str, members[:-1]), f"\\frac{{{2 * members[-1]}}}{{2}}"])
    plain = ", ".join(map(str, members))
    same = [
        f"({plain})", f"\\left({plain}\\right)", f"( {plain.replace(', ', ' , ')} )", f"({plain.replace(' ', '')})",
        f"\\left( {plain.replace(', ', ',' + chr(92) + ' ')} \\right)", f"({half})", f"({names}) = ({plain})", f"\\big({plain}\\big)",
    ]  # fmt: skip
    turned = ", ".join(map(str, members[::-1]))
    other = ", ".join(map(str, [*members[:-1], members[-1] + 1]))
    return same, [
        f"({turned})",
        f"({other})",
        f"({plain}, 30)",
        f"({names}) = ({other})",
        f"[{other}]",
        str(members[0]),
    ]


def intervals(draw: Draw) -> Writings:
    low, high = draw.several(2)
    match draw.one("bounded", "bounded", "ray", "outside"):
        case "bounded":
            left, right = draw.one("(", "["), draw.one(")", "]")
            less, most = "<" if left == "(" else r"\le ", "<" if right == ")" else r"\leq "
            same = [
                f"{left}{low},{high}{right}", f"\\left{left}{low}, {high}\\right{right}", f"x \\in {left}{low}, {high}{right}",
                f"{low} {less}x {most}{high}", f"{left}{2 * low}/2, {high}.0{right}",
            ]  # fmt: skip
            flipped = "[" if left == "(" else "("
            return same, [f"{flipped}{low},{high}{right}", f"{left}{low},{high + 1}{right}", f"{left}{low - 1}, {high}{right}",
                          f"{low} {less}x {most}{high + 1}"]  # fmt: skip
        case "ray":
            left = draw.one("(", "[")
            more = ">" if left == "(" else r"\ge "
            same = [f"{left}{low},\\infty)", f"\\left{left}{low}, +\\infty\\right)", f"x {more}{low}", f"x\\in{left}{low},\\infty)",
                    f"{low} {'<' if left == '(' else chr(92) + 'le '} x", f"{left}{low}, ∞)"]  # fmt: skip
            flipped = "[" if left == "(" else "("
            return same, [f"{flipped}{low},\\infty)", f"(-\\infty,{low})", f"{left}{low + 1},\\infty)", f"x < {low}"]
        case _:
            same = [f"(-\\infty,{low})\\cup({high},\\infty)", f"({high}, \\infty) \\cup (-\\infty, {low})",
                    f"\\left(-\\infty, {low}\\right) \\cup \\left({high}, +\\infty\\right)", f"(-∞,{low})∪({high},∞)",
                    f"x<{low} \\text{{ or }} x>{high}", f"x \\in (-\\infty,{low})\\cup({high},\\infty)"]  # fmt: skip
            return same, [f"(-\\infty,{low}]\\cup({high},\\infty)", f"(-\\infty,{low})\\cup({high + 1},\\infty)",
                          f"({low},{high})", f"(-\\infty,{low})"]  # fmt: skip


def sets(draw: Draw) -> Writings:
    members = draw.several(draw.one(1, 2, 3, 4))
    mixed = draw.order(members)
    plain, other = (", ".join(map(str, these)) for these in (members, [*members[:-1], members[-1] + 1]))
    turned = ", ".join(map(str, mixed))
    same = [
        f"\\{{{plain}\\}}", f"\\{{{turned}\\}}", f"\\left\\{{{plain}\\right\\}}", f"\\{{ {turned} \\}}", f"\\lbrace {plain} \\rbrace",
        f"\\left\\{{\\frac{{{2 * members[0]}}}{{2}}{''.join(f', {n}' for n in members[1:])}\\right\\}}", f"x \\in \\{{{plain}\\}}",
        f"\\{{{plain.replace(', ', ',')}, {members[0]}\\}}",
    ]  # fmt: skip
    return same, [
        f"\\{{{other}\\}}",
        f"\\{{{plain}, 40\\}}",
        f"\\left\\{{{other}\\right\\}}",
        r"\emptyset",
        f"\\{{{other}, {members[0]}\\}}",
    ]


def percent(draw: Draw) -> Writings:
    value = Fraction(draw.whole(1, 399), draw.one(1, 1, 2, 4))
    return _percent(value), [text for wrong in (value + 1, value * 10, value / 10) for text in _percent(wrong)]


def _percent(value: Fraction) -> list[str]:
    number = f"{float(value):g}"
    return [
        f"{number}\\%", f"{number}%", f"{number} \\%", f"{number}\\,\\%", f"{number}\\text{{ percent}}", f"{number} percent",
        f"{number}\\text{{\\%}}", f"{float(value / 100):.6f}".rstrip("0").rstrip("."), f"\\frac{{{(value / 100).numerator}}}{{{(value / 100).denominator}}}",
        f"{number}~\\%", f"{number} per cent",
    ]  # fmt: skip


UNITS = ("cm", "m", "kg", "km", "hours", "miles", "apples", "cm^2", "m/s")


def units(draw: Draw) -> Writings:
    amount, match = draw.whole(2, 400), draw.one("length", "length", "degrees", "money")
    if match == "degrees":
        return _degrees(amount), [*_degrees(amount + 1), f"{amount}\\text{{ cm}}"]
    if match == "money":
        return _money(amount), [*_money(amount + 1), f"{amount}\\text{{ cm}}"]
    unit = draw.one(*UNITS)
    other = draw.one(*(one for one in UNITS if one != unit))
    return _unit(amount, unit), [*_unit(amount, other), *_unit(amount + 1, unit)]


def _unit(amount: int, unit: str) -> list[str]:
    base, _, power = unit.partition("^")
    raised = f"^{power}" if power else ""
    return [
        f"{amount}\\text{{ {base}}}{raised}", f"{amount} \\mathrm{{{unit}}}", f"{amount}\\,\\text{{{base}}}{raised}",
        f"{amount}\\ \\textrm{{ {base}}}{raised}", f"{amount}~\\mathrm{{~{base}}}{raised}", f"{amount} {unit}",
        f"{amount}\\mbox{{ {base}}}{raised}", f"{amount}.0\\text{{ {base}}}{raised}",
    ]  # fmt: skip


def _degrees(amount: int) -> list[str]:
    return [
        f"{amount}^\\circ",
        f"{amount}^{{\\circ}}",
        f"{amount}°",
        f"{amount}\\text{{ degrees}}",
        f"{amount} degrees",
        f"{amount}\\degree",
    ]


def _money(amount: int) -> list[str]:
    return [
        f"\\${amount}",
        f"\\${amount}.00",
        f"{amount}\\text{{ dollars}}",
        f"{amount} dollars",
        f"\\text{{\\${amount}}}",
    ]


def signs(draw: Draw) -> Writings:
    n, c = draw.whole(1, 40), draw.one(*SQUAREFREE)
    match draw.one("minus", "plus", "both", "conjugates"):
        case "minus":
            return [f"-{n}", f"−{n}", f"- {n}", f"-({n})", f"(-{n})", f"{{-{n}}}", f"-\\frac{{{2 * n}}}{{2}}", f"\\frac{{{2 * n}}}{{-2}}"], [
                f"{n}", f"+{n}", f"-{n + 1}", f"\\pm {n}", f"-(-{n})"]  # fmt: skip
        case "plus":
            return [f"{n}", f"+{n}", f"-(-{n})", f"--{n}" if n > 50 else f"{n}.0", f"|-{n}|", f"\\frac{{-{2 * n}}}{{-2}}"], [
                f"-{n}", f"−{n}", f"{n + 1}", f"\\pm {n}", f"-|{n}|"]  # fmt: skip
        case "both":
            return [f"\\pm {n}", f"±{n}", f"{n}, -{n}", f"-{n}, {n}", f"\\{{-{n}, {n}\\}}", f"x = \\pm {n}", f"\\mp {n}"], [
                f"{n}", f"-{n}", f"\\pm {n + 1}", f"{n}, -{n + 1}", f"\\{{{n}\\}}"]  # fmt: skip
        case _:
            return [f"{n}\\pm\\sqrt{{{c}}}", f"{n}+\\sqrt{{{c}}}, {n}-\\sqrt{{{c}}}", f"\\{{{n}-\\sqrt{{{c}}}, {n}+\\sqrt{{{c}}}\\}}",
                    f"x={n} \\pm \\sqrt{{{c}}}", f"\\frac{{{2 * n}\\pm 2\\sqrt{{{c}}}}}{{2}}"], [
                f"{n}+\\sqrt{{{c}}}", f"{n + 1}\\pm\\sqrt{{{c}}}", f"-{n}\\pm\\sqrt{{{c}}}", f"{n}-\\sqrt{{{c}}}, {n}"]  # fmt: skip


def lists(draw: Draw) -> Writings:
    members = draw.several(draw.one(2, 3, 4))
    wrong = [*members[:-1], members[-1] + 1]
    return _list(draw, members), [*_list(draw, wrong), *_list(draw, [*members, 40]), str(members[0])]


def _list(draw: Draw, members: list[int]) -> list[str]:
    mixed = draw.order(members)
    plain, last = ", ".join(map(str, mixed)), str(mixed[-1])
    first = ", ".join(map(str, mixed[:-1]))
    return [
        plain, plain.replace(" ", ""), f"{first} and {last}", f"{first}, and {last}", f"{first} \\text{{ and }} {last}", f"{first} or {last}",
        ", ".join(f"x={n}" for n in mixed), f"x = {plain}", " \\text{ or } ".join(f"x = {n}" for n in mixed), plain.replace(", ", "; "),
        plain.replace(", ", ",\\quad "), f"{first},\\text{{ and }}{last}", plain.replace(", ", ",\\ "), f"x \\in \\{{{plain}\\}}",
    ]  # fmt: skip


def latex(draw: Draw) -> Writings:
    """Sizes, spaces, products, powers, functions: how one thing is set in many ways."""
    a, b, c, n = draw.whole(2, 9), draw.whole(2, 9), draw.whole(2, 9), draw.whole(3, 9)
    match draw.one("polynomial", "pi", "thousands", "power", "logarithm", "matrix", "product", "choose", "rational"):
        case "polynomial":
            return [f"{a}x^2+{b}x-{c}", f"{a}x^{{2}} + {b}x - {c}", f"-{c}+{b}x+{a}x^2", f"x({a}x+{b})-{c}", f"y = {a}x^2+{b}x-{c}",
                    f"{a} \\cdot x^2 + {b} \\times x - {c}", f"{a}\\,x^2+{b}\\,x-{c}"], [
                f"{a}x^2-{b}x-{c}", f"{a}x^3+{b}x-{c}", f"{a}y^2+{b}y-{c}", f"{a}x^2+{b}x-{c + 1}"]  # fmt: skip
        case "pi":
            return [f"\\frac{{{a}\\pi}}{{{n + 1}}}", f"\\frac{{{a}}}{{{n + 1}}}\\pi", f"{a}\\pi/{n + 1}", f"\\dfrac{{{2 * a}\\pi}}{{{2 * n + 2}}}",
                    f"\\frac{{{a}π}}{{{n + 1}}}"], [
                f"\\frac{{{a}\\pi}}{{{n + 2}}}", f"\\frac{{{a}}}{{{n + 1}}}", f"-\\frac{{{a}\\pi}}{{{n + 1}}}", f"{a}\\pi"]  # fmt: skip
        case "thousands":
            value = a * 1000 + b * 100 + c
            return [f"{value}", f"{value:,}", f"{value:,}".replace(",", "{,}"), f"{value:,}".replace(",", "\\,"), f"{value:,}".replace(",", ",\\!"),
                    f"{value}.0", f"\\text{{{value}}}", f"\\mathbf{{{value}}}"], [
                f"{value + 1}", f"{value / 1000:.3f}", f"{value}0", f"{value + 1000:,}"]  # fmt: skip
        case "power":
            return [f"{a}^{{{n}}}", f"{a}^{n}", f"{a ** n}", f"{{{a}}}^{{{n}}}", f"{a}\\cdot {a}^{{{n - 1}}}", f"{a}**{n}"], [
                f"{a}^{{{n + 1}}}", f"{a * n}", f"{a}_{{{n}}}", f"{a}{n}"]  # fmt: skip
        case "logarithm":
            return [f"\\ln {a ** 2}", f"2\\ln {a}", f"\\ln({a ** 2})", f"\\ln\\left({a ** 2}\\right)", f"2 \\ln({a})"], [
                f"\\ln {a}", f"2\\ln {a + 1}", f"{a}", f"\\ln {a ** 2 + 1}"]  # fmt: skip
        case "matrix":
            rows = f"{a} & {b} \\\\ {c} & {n}"
            return [f"\\begin{{pmatrix}} {rows} \\end{{pmatrix}}", f"\\begin{{bmatrix}} {rows} \\end{{bmatrix}}",
                    f"\\begin{{pmatrix}}{a}&{b}\\\\{c}&{n}\\end{{pmatrix}}", f"\\left(\\begin{{array}}{{cc}} {rows} \\end{{array}}\\right)",
                    f"\\begin{{pmatrix}} {rows} \\\\ \\end{{pmatrix}}"], [
                f"\\begin{{pmatrix}} {a} & {b} \\\\ {c} & {n + 1} \\end{{pmatrix}}", f"\\begin{{pmatrix}} {a} & {b} \\end{{pmatrix}}",
                f"\\begin{{pmatrix}} {a + 1} & {b} \\\\ {c} & {n} \\end{{pmatrix}}"]  # fmt: skip
        case "product":
            return [f"{a}xy^{{{n}}}", f"{a} x y^{n}", f"{a} \\cdot x \\cdot y^{{{n}}}", f"y^{{{n}}}{a}x" if n > 50 else f"{a}y^{{{n}}}x",
                    f"{a}\\,xy^{{{n}}}", f"{a}x\\times y^{{{n}}}"], [
                f"{a}x^{{{n}}}y", f"{a + 1}xy^{{{n}}}", f"{a}xy^{{{n + 1}}}", f"{a}x+y^{{{n}}}"]  # fmt: skip
        case "choose":
            value = (n + 2) * (n + 1) // 2
            return [f"\\binom{{{n + 2}}}{{2}}", f"\\dbinom{{{n + 2}}}{{2}}", f"{{{n + 2} \\choose 2}}", f"{value}",
                    f"\\frac{{{n + 2}!}}{{2!\\,{n}!}}"], [
                f"\\binom{{{n + 3}}}{{2}}", f"{value + 1}", f"\\frac{{{n + 2}}}{{2}}"]  # fmt: skip
        case _:
            return [f"\\frac{{x+{a}}}{{{b}x}}", f"\\frac{{{a}+x}}{{{b}x}}", f"(x+{a})/({b}x)", f"\\dfrac{{x+{a}}}{{{b}x}}",
                    f"\\frac{{1}}{{{b}}}+\\frac{{{a}}}{{{b}x}}", f"\\frac{{{2}x+{2 * a}}}{{{2 * b}x}}"], [
                f"\\frac{{x-{a}}}{{{b}x}}", f"\\frac{{{b}x}}{{x+{a}}}", f"\\frac{{x+{a + 1}}}{{{b}x}}", f"\\frac{{x+{a}}}{{{b}}}"]  # fmt: skip


KINDS: dict[str, Callable[[Draw], Writings]] = {
    kind.__name__: kind for kind in (roots, fractions, tuples, intervals, sets, percent, units, signs, lists, latex)
}


def expressions(count: int = COUNT, seed: int = 0) -> list[Expression]:
    """So many of each kind, the same ones for the same seed."""
    made: list[Expression] = []
    for kind, writings in KINDS.items():
        for number in range(count):
            draw = Draw("expressions", seed, kind, number)
            same, other = writings(draw)
            text, again = draw.order(list(dict.fromkeys(same)))[:2]
            made.append(Expression(kind, text, again, draw.one(*other)))
    return made


def ours(answer: str, reference: str) -> bool:
    return verify("mathematics", [f"So it is \\boxed{{{answer}}}."], [reference]) == [1.0]


def math_verify(answer: str, reference: str) -> bool:
    """math-verify by itself, as its page says to use it."""
    from math_verify import parse
    from math_verify import verify as agree

    wanted, said = (parse(text) for text in (f"${reference}$", f"So it is $\\boxed{{{answer}}}$."))
    return bool(agree(wanted, said))


def table(count: int = COUNT) -> dict[str, Any]:
    """How many verdicts of each kind are right, three an expression, ours and math-verify's; and each that is wrong."""
    logging.disable(logging.CRITICAL)
    kinds = {kind: {"ours": 0, "math_verify": 0, "of": 3 * count} for kind in KINDS}
    wrong: list[dict[str, Any]] = []
    for one in expressions(count):
        for answer, reference, verdict in ((one.text, one.text, 1), (one.text, one.same, 1), (one.text, one.other, 0)):
            says = {"ours": ours(answer, reference), "math_verify": math_verify(answer, reference)}
            for who, said in says.items():
                kinds[one.kind][who] += said == verdict
            if not all(said == verdict for said in says.values()):
                wrongs = [who for who, said in says.items() if said != verdict]
                wrong.append(
                    {"kind": one.kind, "answer": answer, "reference": reference, "right": verdict, "wrong": wrongs}
                )
    logging.disable(logging.NOTSET)
    return {"kinds": kinds, "wrong": wrong}


if __name__ == "__main__":
    print(json.dumps(table(), indent=1, ensure_ascii=False))
