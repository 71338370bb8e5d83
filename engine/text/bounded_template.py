"""Jinja for templates that somebody else wrote, or that meet rows somebody else wrote: sandboxed, without randomness, and bounded.

What a template does is counted, not timed, so that a row ends the same way on every machine: passes of loops, calls, characters
read and written, and how large one value may be. Each operation of Jinja that can be slow or make much out of little is paid
for before it is done.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame, operators
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context

MOST = 50_000_000  # characters in one value; an item of a list or an object counts as a hundred of them
LONGEST = 1_000_000  # characters of a template
WORK = 1_000_000_000  # what one rendering may cost; some seconds
PASS, CALL, ITEM, WRITTEN, SLOWLY = (
    500,
    5000,
    200,
    5,
    20,
)  # of a pass, a call, an item, a character written, one read by a slow filter
WIDEST, BITS, ITEMS = 10_000, 100_000, 100  # a width in a format; a whole number; characters that an item counts as
# What looks at no more than an end of its value, and what goes over it as fast as memory does.
AT_ONCE = frozenset(("default", "d", "length", "count", "first", "last", "items", "attr"))
FAST = frozenset(("upper", "lower", "trim", "replace", "string", "join", "list", "safe", "capitalize", "reverse"))
COMPARING = frozenset(
    ("in", "eq", "==", "equalto", "ne", "!=", "lt", "<", "le", "<=", "gt", ">", "ge", ">=", "lower", "upper")
)
# Makes a list of what it is given, be it the letters of a text.
LISTING = frozenset(("list", "batch", "slice", "sort", "unique", "map", "select", "reject", "groupby"))
SEVERAL = (dict, list, tuple, set, frozenset, type({}.keys()), type({}.values()), type({}.items()))
PERCENT = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(\*|\d+)?(?:\.(\*|\d+))?")
BRACES = re.compile(r"\{[^{}]*?(\d{5,})|\{[^{}]*(\{)")


class Excessive(jinja2.TemplateRuntimeError):
    """A template that would take more time or memory than a template may."""


class _Generator(CodeGenerator):
    """Jinja's compiler, with a toll at the start of every block and on what is compared, joined and put together."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        held = list(nodes)
        self.writeline(f"environment.toll({PASS + WRITTEN * sum(map(_static, held))})")
        super().blockvisit(held, frame)

    def _paid(self, how: str, write: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame) -> None:
        self.write(f"environment.{how}(")
        write(node, frame)
        self.write(")")

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        if not node.recursive:  # one that is goes on with what it is called with, and pays a pass each
            node.iter = nodes.Call(nodes.EnvironmentAttribute("held"), [node.iter], [], None, None)
        super().visit_For(node, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self.write("(")
        self._paid("read", self.visit, node.expr, frame)
        for operand in node.ops:
            self.write(f" {operators[operand.op]} ")
            self._paid("read", self.visit, operand.expr, frame)
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.held(str_join((")
        for item in node.nodes:
            self._paid("written", self.visit, item, frame)
            self.write(", ")
        self.write(")))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._paid("held", super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._paid("held", super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._paid("held", super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._paid("held", super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)


def _static(node: nodes.Node) -> int:
    """Characters that a block writes as they stand."""
    if isinstance(node, nodes.Output):
        return sum(len(child.data) for child in node.nodes if isinstance(child, nodes.TemplateData))
    return 0


@pass_context
def _output(context: Context, value: Any) -> Any:
    return cast(BoundedEnvironment, context.environment).written(value)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with a bound on what a rendering costs and on what it makes.

    Args:
        most: characters that one value, and what is rendered, may have.
        work: what a rendering may cost, at least what it takes to go over `most`.
        options: Jinja's own, `undefined` and `extensions`, say.
    """

    code_generator_class = _Generator
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, most: int = MOST, work: int = WORK, **options: Any) -> None:
        super().__init__(finalize=_output, optimized=False, **options)  # constants are not worked out by the compiler
        self.most, self.work = most, max(work, 20 * most)
        self._account = threading.local()
        # A result may depend on the derived seed alone.
        del self.filters["random"]
        del self.globals["lipsum"]
        for name, given in list(self.filters.items()):
            self.add_filter(name, given)
        for name in COMPARING & self.tests.keys():
            self.tests[name] = self._bounded(name, self.tests[name])

    def add_filter(self, name: str, given: Callable[..., Any]) -> None:
        """A filter that is paid for by what it is handed and what it makes."""
        self.filters[name] = self._bounded(name, given)

    def template(self, text: str) -> Callable[[Mapping[str, Any]], str]:
        """A function from names to text.

        Raises:
            jinja2.TemplateError: the text is no template; the function raises it, `Excessive`, and what else the operations
                of a template can (TypeError, ValueError, ArithmeticError, LookupError).
        """
        with _in_words():
            made = self.from_string(_short(text))
        return lambda values: self._run(made.render, values)

    def expression(self, text: str) -> Callable[[Mapping[str, Any]], Any]:
        """A function from names to the value of an expression; for what is raised see `template`."""
        with _in_words():
            made = self.compile_expression(_short(text), undefined_to_none=False)
        return lambda values: self._run(made, values)

    def _run(self, made: Callable[..., Any], values: Mapping[str, Any]) -> Any:
        self._account.left = self.work
        try:
            with _in_words():
                return made(values)
        finally:
            self._account.left = 0

    # -- what is paid --------------------------------------------------------------------------------------------------

    def toll(self, cost: int) -> None:
        left = getattr(self._account, "left", 0) - cost
        if left < 0:
            raise Excessive(
                "it does more than a template may: loops in loops, or a text that is gone over again and again"
            )
        self._account.left = left

    def read(self, value: Any, each: int = 1) -> Any:
        """The value, once it is paid that something goes over it."""
        items, characters = _measure(value, self.most)
        self.toll(ITEM * items + each * characters)
        return value

    def written(self, value: Any) -> Any:
        """The value, once it is paid that its text is made, or copied."""
        return self.read(value, WRITTEN)

    def held(self, value: Any) -> Any:
        """The value, unless it is larger than one may be."""
        items, characters = _measure(value, self.most)
        self.fits(ITEMS * (items - 1) + characters)
        self.toll(ITEM * items + WRITTEN * characters * isinstance(value, str | bytes))
        return value

    def fits(self, size: int) -> None:
        if size > self.most:
            raise Excessive(f"it makes a value of more than {self.most:,} characters")

    # -- what a template can do ----------------------------------------------------------------------------------------

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if type(left) is not int or type(right) is not int:
            self.read((left, right))
        if operator == "*":
            self._times(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._bits(left.bit_length() * abs(right))
        elif operator == "%" and isinstance(left, str | bytes):
            self._percent(left, right)
        elif operator == "+":
            self.fits(sum(_weight(side, self.most) for side in (left, right)))
        return self.held(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        self, made = __self, __obj
        self.toll(CALL)
        inner = getattr(made, "__wrapped__", made)  # `str.format` comes wrapped by the sandbox
        owner, name = getattr(inner, "__self__", None), str(getattr(inner, "__name__", ""))
        if isinstance(owner, str | bytes | int | float | list | tuple | dict | set):
            self._check(f".{name}", owner, args, kwargs)
        else:
            self.read((args, kwargs))
        return self.held(super().call(__context, made, *args, **kwargs))

    def _bounded(self, name: str, given: Callable[..., Any]) -> Callable[..., Any]:
        first = int(hasattr(given, "jinja_pass_arg"))

        @functools.wraps(given)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.toll(CALL)
            if name in AT_ONCE or len(args) <= first:
                return given(*args, **kwargs)
            self._check(name, args[first], args[first + 1 :], kwargs)
            return self.held(given(*args, **kwargs))

        return bounded

    def _check(self, name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Pay for what goes in, and refuse what would come out too large: of a filter, or of a method (`.join`) of a value."""
        given = [*args, *kwargs.values()]
        each = 1 if name.lstrip(".") in FAST | COMPARING else SLOWLY
        for item in (value, *given):
            self.read(item, each)
        size, texts = _weight(value, self.most), sum(_weight(item, self.most) for item in given)
        number = max(_numbers(given), default=0)
        match name:
            case "center" | ".center" | ".ljust" | ".rjust" | ".zfill" | ".to_bytes":
                self.fits(max(size, number))
            case "batch" | "slice":
                self.fits(size + ITEMS * number)
            case "indent" | ".expandtabs":
                self.fits(size + (number + texts) * (1 + max(str(value).count(mark) for mark in "\n\t")))
            case "replace" | ".replace" if len(given) > 1 and isinstance(given[0], str) and isinstance(value, str):
                self.fits(size + value.count(given[0]) * _weight(given[1], self.most))
            case "join":
                self.fits(size + _length(value) * texts)
            case ".join":
                self.fits(texts + sum(map(_length, given)) * size)
            case ".translate" | "wordwrap" | "urlize":
                self.fits(size * max(1, texts))
            case "format":
                self._percent(value, given)
            case ".format" | ".format_map":
                self._braces(str(value), given)
            case "tojson" | "round" | "pprint":
                self.fits(0 if number <= 100 else self.most + 1)
            case ".encode" if any(str(one).lower().startswith(("idna", "punycode")) for one in given):
                raise Excessive("it encodes a text as the name of a host")
            case "sum" if any(isinstance(one, list | tuple) for one in given):
                self.toll(ITEM * size**2)
            case ".split" | ".rsplit" | ".splitlines":
                mark = next((one for one in given if isinstance(one, str) and one), None)
                self.fits(ITEMS * (str(value).count(mark) if mark else len(str(value).split(None, self.most // ITEMS))))
            case _ if name in LISTING and isinstance(value, str):
                self.fits(ITEMS * len(value))
            case _:
                pass

    def _times(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            self._bits(left.bit_length() + right.bit_length())
        elif isinstance(left, int) or isinstance(right, int):
            times, value = (left, right) if isinstance(left, int) else (right, left)
            self.fits(max(0, int(times)) * max(1, _weight(value, self.most)) if not isinstance(value, float) else 0)

    def _bits(self, bits: int) -> None:
        if bits > BITS:
            raise Excessive(f"it makes a number of {bits:,} bits")

    def _percent(self, form: Any, given: Any) -> None:
        text = form if isinstance(form, str) else bytes(form).decode("latin-1")
        found = [width for match in PERCENT.finditer(text) for width in match.groups() if width]
        self._widths([int(width[:10]) for width in found if width != "*"], "*" in found, given)
        self.fits(len(text) + text.count("%") * _weight(given, self.most))

    def _braces(self, form: str, given: Any) -> None:
        found = list(BRACES.finditer(form))
        self._widths([int(match[1][:10]) for match in found if match[1]], any(match[2] for match in found), given)
        self.fits(len(form) + form.count("{") * _weight(given, self.most))

    def _widths(self, widths: list[int], taken: bool, given: Any) -> None:
        """`taken`: the form takes a width from what it is given."""
        if taken:
            widths = [*widths, *_numbers(given)]
        if max(widths, default=0) > WIDEST:
            raise Excessive(f"a width of {max(widths):,} characters in a format; at most {WIDEST:,} are")


@contextmanager
def _in_words() -> Generator[None]:
    """What Python raises for a template that is too deep, too wide or without end, as errors of a template."""
    try:
        yield
    except RecursionError:
        raise Excessive("it is nested too deeply, or calls itself without end") from None
    except (
        MemoryError,
        OverflowError,
        SyntaxError,
        NameError,
    ) as error:  # of Python's compiler, of `range`, and of 1e400, which is `inf`
        raise Excessive(f"it is too much for Jinja: {str(error) or type(error).__name__}") from None


def _short(text: str) -> str:
    if len(text) > LONGEST:
        raise Excessive(f"it has {len(text):,} characters; a template has at most {LONGEST:,}")
    return text


def _measure(value: Any, most: int) -> tuple[int, int]:
    """How many items a value has in it, itself included, and how many characters; it is not looked at further than `most`."""
    if type(value) is str:
        return 1, len(value)
    items = characters = 0
    rest: list[Any] = [value]
    while rest and ITEMS * (items + len(rest)) + characters <= most + ITEMS:
        item = rest.pop()
        items += 1
        kind = type(item)
        if kind is str:
            characters += len(item)
        elif kind is int:
            characters += item.bit_length() // 64
        elif kind is float or kind is bool or item is None:
            pass
        elif isinstance(item, str | bytes):
            characters += len(item)
        elif isinstance(item, range):
            items += len(item)
        elif isinstance(item, Namespace):
            rest.append(object.__getattribute__(item, "_Namespace__attrs"))
        elif isinstance(item, SEVERAL):
            size = len(item)
            if ITEMS * size > most:
                items += size  # it is too much already: only counted
            elif isinstance(item, dict):
                rest.extend(item.keys())
                rest.extend(item.values())
            else:
                rest.extend(item)
    return items + len(rest), characters


def _weight(value: Any, most: int) -> int:
    items, characters = _measure(value, most)
    return ITEMS * (items - 1) + characters


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 0


def _numbers(value: Any) -> Iterator[int]:
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, int):
            yield abs(item)
        elif isinstance(item, Mapping):
            rest.extend(cast(Mapping[Any, Any], item).values())
        elif isinstance(item, list | tuple):
            rest.extend(cast(Iterable[Any], item))
