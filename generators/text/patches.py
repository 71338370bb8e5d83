"""What is changed in transformers, and when each change can go. Seen with transformers 5.19."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import jinja2
from jinja2.runtime import Context

from engine.text.bounded_template import ITEM, ITEMS, LONGEST, PASS, SLOWLY, BoundedEnvironment, Excessive

SCALARS = (bool, type(None), float)
QUICK = ("strip", "lstrip", "rstrip", "startswith", "endswith", "split")


def bound_chat_templates() -> None:
    """Have chat templates rendered within bounds of time and memory: they come with models, and are programs.

    Can go when transformers bounds what a template may do: tests/generators/text/test_hostile_chat_template.py passes without.
    """
    from transformers.utils import chat_template_utils

    rendering: Any = chat_template_utils
    if rendering.ImmutableSandboxedEnvironment is not ChatEnvironment:
        rendering.ImmutableSandboxedEnvironment = ChatEnvironment
        rendering._compile_jinja_template.cache_clear()


class _ChatTemplate(jinja2.Template):
    """A template of a model, each rendering of which is paid for from the beginning."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        with cast(ChatEnvironment, self.environment).account():
            return super().render(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Iterator[str]:
        with cast(ChatEnvironment, self.environment).account():
            yield from super().generate(*args, **kwargs)


class _Filters(dict[str, Callable[..., Any]]):
    """Filters, of which those that are set later are bounded like the rest."""

    def __init__(
        self, bound: Callable[[str, Callable[..., Any]], Callable[..., Any]], known: Mapping[str, Any]
    ) -> None:
        super().__init__(known)
        self._bound = bound

    def __setitem__(self, name: str, given: Callable[..., Any]) -> None:
        super().__setitem__(name, self._bound(name, given))


class _PerThread(threading.local):
    left = 0


class ChatEnvironment(BoundedEnvironment):
    """The environment of chat templates as transformers makes it, bounded.

    Each row that is learnt or asked is rendered several times, so what templates do all the time, with texts and small numbers, is
    paid for here in few steps; the rest is `BoundedEnvironment`'s.
    """

    template_class = _ChatTemplate

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._account = _PerThread()
        self.filters = _Filters(self._bounded, self.filters)

    def toll(self, cost: int) -> None:
        account = self._account
        account.left -= cost
        if account.left < 0:
            super().toll(0)

    def read(self, value: Any, each: int = 1) -> Any:
        kind = type(value)
        if kind is str:
            self.toll(ITEM + each * len(value))
        elif kind in SCALARS:
            self.toll(ITEM)
        else:
            super().read(value, each)
        return value

    def held(self, value: Any) -> Any:
        kind = type(value)
        if kind in SCALARS or (kind is str and len(value) <= self.most):
            self.toll(ITEM)
            return value
        return super().held(value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is str and type(right) is str:
            size = len(left) + len(right)
            self.toll(2 * ITEM + size)
            self.fits(size)
            return left + right
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        text = getattr(__obj, "__self__", None)
        if type(text) is str and __obj.__name__ in QUICK and all(type(one) is str for one in args) and not kwargs:
            __self.toll(PASS + SLOWLY * len(text) + sum(map(len, args)))
            if __obj.__name__ == "split":
                __self.fits(ITEMS * (1 + (text.count(args[0]) if args and args[0] else len(text))))
            return __obj(*args)
        return super().call(__context, __obj, *args, **kwargs)

    def _bounded(self, name: str, given: Callable[..., Any]) -> Callable[..., Any]:
        bounded = super()._bounded(name, given)
        if name != "trim":
            return bounded

        @functools.wraps(given)
        def trimmed(*args: Any, **kwargs: Any) -> Any:
            if len(args) == 1 and type(args[0]) is str and not kwargs:
                self.toll(PASS + len(args[0]))
                return args[0].strip()
            return bounded(*args, **kwargs)

        return trimmed

    @contextmanager
    def account(self) -> Generator[None]:
        """For one rendering.

        Raises:
            Excessive: it costs more than one may.
        """
        self._account.left = self.work
        try:
            yield
        except RecursionError:
            raise Excessive("it is nested too deeply, or calls itself without end") from None
        except MemoryError:
            raise Excessive("it takes more memory than there is") from None
        finally:
            self._account.left = 0

    def from_string(self, source: Any, *args: Any, **kwargs: Any) -> jinja2.Template:
        if isinstance(source, str) and len(source) > LONGEST:
            raise Excessive(f"it has {len(source):,} characters; a template has at most {LONGEST:,}")
        with self.account():
            try:
                return super().from_string(source, *args, **kwargs)
            except SyntaxError as error:  # Python's compiler has bounds of its own
                raise Excessive(f"it is too much for Jinja: {error}") from None

    def _check(self, name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super()._check(name, value, args, kwargs)
        if name == "tojson":  # whose separators and indentation may be texts here, written once an item
            given = [one for one in (*args, *kwargs.values()) if isinstance(one, str | list | tuple)]
            if (longest := max((len(str(one)) for one in given), default=0)) > 32:
                raise Excessive(f"it puts {longest:,} characters between the items of JSON")
