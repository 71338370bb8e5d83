r"""One way to write what LaTeX, Unicode and programs write in many: `\dfrac`, `√3`, `x**2`, `\left(`, `½`, `（1，2）`.

What is left is LaTeX that math-verify reads, and that two writings of one thing share more often than not.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

_SHELL = re.compile(
    r"\$\$(.+)\$\$|\$(.+)\$|\\\((.+)\\\)|\\\[(.+)\\\]"
    r"|\\(?:text|textbf|textrm|mbox|mathrm|mathbf|mathit|mathsf|boldsymbol|bm|emph|underline)\{([^{}]*)\}",
    re.DOTALL,
)
# By command: those of one line are set alike, or say nothing but how large something is set.
_SIZES = [
    "left",
    "right",
    *(f"{size}{side}" for size in ("big", "Big", "bigg", "Bigg") for side in ("", "l", "m", "r")),
]
_COMMANDS = {
    **dict.fromkeys((*_SIZES, "displaystyle", "textstyle"), ""),
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), r"\frac"),
    **dict.fromkeys(("dbinom", "tbinom"), r"\binom"),
    **dict.fromkeys(("leq", "leqslant"), r"\le"),
    **dict.fromkeys(("geq", "geqslant"), r"\ge"),
    **dict.fromkeys(("lvert", "rvert", "vert"), "|"),
    **dict.fromkeys(("quad", "qquad", "thinspace", "space"), " "),
    "neq": r"\ne", "varnothing": r"\emptyset", "degree": r"^\circ", "ast": "*", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[",
    "rbrack": "]", **dict.fromkeys(("dots", "cdots", "dotsc"), r"\ldots"), "lor": r"\text{ or }",
}  # fmt: skip
_CHARACTERS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "∓": r"\mp ", "∞": r"\infty ", "∪": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "⁄": "/", "∨": r"\text{ or }",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "~": " ", "。": ".",
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "θ": r"\theta ", "λ": r"\lambda ", "μ": r"\mu ", "π": r"\pi ",
    "ρ": r"\rho ", "σ": r"\sigma ", "τ": r"\tau ", "φ": r"\phi ", "ω": r"\omega ",
}  # fmt: skip
_ESCAPES = {r"\%": "%", r"\$": "$", "{,}": ",", r"\!": "", r"\,": " ", r"\;": " ", r"\:": " ", r"\ ": " ", r"\\": r"\\"}
_PIECE = re.compile(r"\\(?P<command>[A-Za-z]+)|\\[\\%$!,;: ]|\{,\}|[^\x00-\x7f]|~")
_TENS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}


def plain(text: str) -> str:
    """The text without what says nothing: dollars around it, a full stop, spaces, and how things are set."""
    while True:
        text = text.strip().rstrip(".。").rstrip()
        shell = _SHELL.fullmatch(text)
        inner = next(group for group in shell.groups() if group is not None) if shell else ""
        if not shell or re.search(r"(?<!\\)\$", inner):
            break
        text = inner
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    if re.search(r",\s", text):  # the commas of a list have spaces, so that those without are in numbers
        text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return _braced(" ".join(text.split()))


def _piece(match: re.Match[str]) -> str:
    piece, command = match.group(), match["command"]
    if command is not None:
        return _COMMANDS.get(command, piece)
    if piece in _ESCAPES:
        return _ESCAPES[piece]
    if "\uff01" <= piece <= "\uff5e":  # as wide as an ideograph
        return unicodedata.normalize("NFKC", piece)
    if unicodedata.decomposition(piece).startswith("<fraction>"):
        top, _, bottom = unicodedata.normalize("NFKC", piece).partition("⁄")
        return f"\\frac{{{top}}}{{{bottom}}}" if bottom else piece
    return _CHARACTERS.get(piece, piece)


def _root(match: re.Match[str]) -> str:
    return (
        f"\\sqrt{'[3]' if match['sign'] == '∛' else ''}{{{match['group'] or match['braces'] or match['word'] or ''}}}"
    )


def _raised(match: re.Match[str]) -> str:
    return f"^{{{unicodedata.normalize('NFKC', match.group()).replace('−', '-')}}}"


def _lowered(match: re.Match[str]) -> str:
    return f"_{{{unicodedata.normalize('NFKC', match.group())}}}"


def _infix(match: re.Match[str]) -> str:
    return f"\\{'frac' if match[2] == 'over' else 'binom'}{{{match[1].strip()}}}{{{match[3].strip()}}}"


def _power(match: re.Match[str]) -> str:
    return f"^{{{match['group'] or match['word']}}}"


def _repeating(match: re.Match[str]) -> str:
    """a.bc(de) = (abcde - abc) / 99000, with a nine a digit that comes again and a zero a digit that does not."""
    whole, fixed, period = match.groups()
    top = int(whole + fixed + period) - int((whole + fixed) or 0)
    return f"\\frac{{{top}}}{{{10 ** len(fixed) * (10 ** len(period) - 1)}}}"


def _outward(match: re.Match[str]) -> str:
    return f"{'(' if match[1] == ']' else '['}{match[2]}{')' if match[3] == '[' else ']'}"


def _scale(match: re.Match[str]) -> str:
    return f" \\times 10^{{{_TENS[match[1].lower()]}}}"


# In this order.
_REWRITES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"(?<=\d)(?:\\[,! ]|\{,\}|~)(?=\d{3}(?!\d))"), ""),  # 1\,234, 1{,}234
    (re.compile(  # √3, ∛(x), sqrt(3)
        r"(?:(?<![\\A-Za-z])sqrt|(?P<sign>[√∛]))\s*(?:\((?P<group>[^()]*)\)|\{(?P<braces>[^{}]*)\}|(?P<word>\d+|[A-Za-z]))"
    ), _root),
    (re.compile(r"\{([^{}]*)\\(over|choose)(?![A-Za-z])([^{}]*)\}"), _infix),  # TeX's own {1 \over 2}
    (re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+"), _raised),
    (re.compile("[₀₁₂₃₄₅₆₇₈₉]+"), _lowered),
    (re.compile(r"\\\\\[[\d.]+[a-z]{2}\]"), r"\\\\"),  # how far apart a matrix's rows are: \\[4pt]
    (_PIECE, _piece),
    (re.compile(r"(?:\*\*|\^)\s*(?:\((?P<group>[^()]*)\)|(?P<word>-?\d+|[A-Za-z](?![A-Za-z])))"), _power),  # x**2, x^(1/2)
    (re.compile(r"\\log\s*_\s*(\d)"), r"\\log_{\1} "),
    (re.compile(r"_\s*(\d+|[A-Za-z])(?![A-Za-z])"), r"_{\1}"),
    (re.compile(r"(\d*)\.(\d*)\\(?:overline|bar)\{(\d+)\}"), _repeating),
    (re.compile(r"\\sqrt\[(\d*[13579])\]\{\s*-\s*([\w.]+)\s*\}"), r"(-\\sqrt[\1]{\2})"),  # the real one
    (re.compile(r"([\[\]])([^][(){},;]+,[^][(){},;]+)([\[\]])"), _outward),  # ]0,1[
    (re.compile(  # 3 million, 3\text{ million}
        r"(?<=\d)\s*(?:\\(?:text|mathrm|mbox|textrm)\{\s*)?\b(thousand|million|billion|trillion)\b(?:\s*\})?", re.IGNORECASE
    ), _scale),
]  # fmt: skip


def _braced(text: str) -> str:
    """`{1, 2}` is a set, as people write who know no LaTeX, and `{3}` is 3."""
    if not re.fullmatch(r"\{(?:[^{}\\]|\\[A-Za-z]+|\{[^{}]*\})*\}", text):
        return text
    return f"\\{{{text[1:-1]}\\}}" if "," in text else text[1:-1].strip()
