"""Columns of other names: `columns: {prompt: question, completion: "{{ answers[0] }}"}`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine.errors import UserError, nearest
from engine.reader.cells import Unfit, listed

Value = Callable[[dict[str, Any]], Any]


def is_template(text: str) -> bool:
    return "{{" in text or "{%" in text


class ColumnMapping:
    """Our names for what a row has: each another column, a Jinja template over all of them, or nothing (null leaves it out).

    A template that is one `{{ expression }}` gives what the expression gives, a list, say; others give text.

    Raises:
        UserError: a template that does not parse.
    """

    def __init__(self, given: Mapping[str, str | None]) -> None:
        self.plain = {name: source for name, source in given.items() if source is None or not is_template(source)}
        self.built = {name: _value(name, source) for name, source in given.items() if source and is_template(source)}

    def __call__(self, row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """The row under our names, and of those that are other columns, which.

        Raises:
            Unfit: there is no such column, or the template fails on this row.
        """
        made, renamed = dict(row), dict[str, str]()
        for name, source in self.plain.items():
            if source is None:
                made.pop(name, None)
                continue
            if source not in row:
                told = f"there is no column `{source}`.{nearest(source, row)} Columns: {listed(row)}"
                raise Unfit("missing_column", name, told)
            if source not in self.plain and source not in self.built:
                made.pop(source, None)
            made[name], renamed[name] = row[source], source
        for name, value in self.built.items():
            made[name] = value(row)
        return made, renamed


def _value(name: str, template: str) -> Value:
    import jinja2

    from engine.text.bounded_template import BoundedEnvironment

    inner = template.strip()
    alone = inner.startswith("{{") and inner.endswith("}}") and inner.count("{{") == 1
    try:
        environment = BoundedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        compute = environment.expression(inner[2:-2].strip()) if alone else environment.template(template)
    except jinja2.TemplateError as error:
        shown = template if len(template) <= 200 else f"{template[:199]}…"
        raise UserError(f"`columns: {{{name}: {shown}}}` is not a Jinja template: {error}.") from None

    def value(row: dict[str, Any]) -> Any:
        try:
            made = compute({**{key: item for key, item in row.items() if key.isidentifier()}, "row": row})
            if isinstance(made, jinja2.Undefined):
                str(made)  # raises, and says which name it is
            return made
        except Exception as error:  # a template is the user's code: anything may happen in it
            raise Unfit("bad_template", name, f"{type(error).__name__}: {error}") from None

    return value
