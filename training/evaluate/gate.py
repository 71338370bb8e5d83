"""A regression gate: conditions over an evaluation's table that must not hold, such as

ppo.accuracy < sft.accuracy - 0.05
"sft best of 4".accuracy > ppo.accuracy and ppo.kl > 1

A name is a model's and a metric's, joined by a dot; a model's name with spaces stands in quotes. Known are numbers,
+ - * /, comparisons, `and`, `or`, `not`.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import UserError, nearest

Table = Mapping[str, Mapping[str, float | int | None]]

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


@dataclass(frozen=True)
class Condition:
    """A condition as written, and as it is worked out: `tree` over names `_0`, `_1`, ... of (model, metric)."""

    text: str
    tree: ast.expr
    names: tuple[tuple[str, str], ...]

    def holds(self, table: Table) -> bool:
        """Whether the condition is true of the table.

        Raises:
            UserError: a metric was not measured for a model, or something is divided by 0.
        """
        values: dict[str, float] = {}
        for n, (model, metric) in enumerate(self.names):
            value = table[model].get(metric)
            if value is None:
                raise UserError(f"`fail_if: {self.text}`: {model}.{metric} was not measured.")
            values[f"_{n}"] = float(value)
        try:
            return bool(_value(self.tree, values))
        except ZeroDivisionError:
            raise UserError(f"`fail_if: {self.text}` divides by 0.") from None

    def values_in(self, table: Table) -> str:
        """The numbers that it is about, in words."""
        return ", ".join(
            f"{model}.{metric} = {table[model].get(metric):.4g}" for model, metric in dict.fromkeys(self.names)
        )


def parse(text: str, models: Sequence[str] | None, metrics: Sequence[str]) -> Condition:
    """Read a condition.

    Args:
        models: None where they are not known yet: any name is then one.

    Raises:
        UserError: it is none, or names a model or metric that is not there.
    """
    names: list[tuple[str, str]] = []

    def name(match: re.Match[str]) -> str:
        model, metric = match["quoted"] or match["plain"], match["metric"]
        for what, word, known in (("model", model, models), ("metric", metric, metrics)):
            if known is not None and word not in known:
                raise UserError(
                    f"`fail_if: {text}`: there is no {what} `{word}`.{nearest(word, known)} Known: {', '.join(known)}."
                )
        if (model, metric) not in names:
            names.append((model, metric))
        return f"_{names.index((model, metric))}"

    # Longest first: `sft-2.x` is not `sft - 2.x`.
    plain = "|".join([*(re.escape(model) for model in sorted(models or (), key=len, reverse=True)), r"[A-Za-z_][\w-]*"])
    pattern = rf"""(?:["'](?P<quoted>[^"']+)["']|(?<![\w.])(?P<plain>{plain}))\s*\.\s*(?P<metric>[A-Za-z_]\w*)"""
    replaced = re.sub(pattern, name, text)
    try:
        tree = ast.parse(replaced, mode="eval").body
        _check(tree)
    except (SyntaxError, ValueError):
        raise UserError(
            f"`fail_if: {text}` can't be read. Expected a comparison such as `ppo.accuracy < sft.accuracy - 0.05`."
        ) from None
    return Condition(text, tree, tuple(names))


def _check(node: ast.AST) -> None:
    """Refuse all but comparisons of arithmetic.

    Raises:
        ValueError: something else stands in it, or nothing is compared.
    """
    if not any(isinstance(part, ast.Compare) for part in ast.walk(node)):
        raise ValueError
    for part in ast.walk(node):
        if isinstance(part, ast.Constant):
            fine = isinstance(part.value, int | float) and not isinstance(part.value, bool)
        elif isinstance(part, ast.Name):
            fine = bool(re.fullmatch(r"_\d+", part.id))
        else:
            fine = (
                isinstance(
                    part,
                    ast.Compare | ast.BoolOp | ast.BinOp | ast.UnaryOp | ast.boolop | ast.USub | ast.Not | ast.Load,
                )
                or type(part) in _BINARY
            )
        if not fine:
            raise ValueError


def _value(node: ast.expr, values: Mapping[str, float]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return values[node.id]
        case ast.BinOp():
            return _BINARY[type(node.op)](_value(node.left, values), _value(node.right, values))
        case ast.UnaryOp():
            inner = _value(node.operand, values)
            return -inner if isinstance(node.op, ast.USub) else not inner
        case ast.BoolOp():
            parts = (_value(part, values) for part in node.values)
            return all(parts) if isinstance(node.op, ast.And) else any(parts)
        case ast.Compare():
            sides = [_value(side, values) for side in (node.left, *node.comparators)]
            return all(_BINARY[type(op)](a, b) for op, a, b in zip(node.ops, sides[:-1], sides[1:], strict=True))
        case _:
            raise AssertionError(node)
