"""Jinja templates, a recipe's and those in generators/templates/: sandboxed, bounded, strict about undefined names, without randomness."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.meta

from engine.errors import UserError, nearest
from engine.text.bounded_template import BoundedEnvironment

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight

BUILT_IN = frozenset({"range", "dict", "cycler", "joiner", "namespace"})


@cache
def _environment() -> BoundedEnvironment:
    return BoundedEnvironment(undefined=jinja2.StrictUndefined)


class Unrenderable(Exception):
    """A row has no value for a name in the template, or one the template can't use."""


class Template:
    """One compiled template.

    Attributes:
        where: what to call it in a message, e.g. "templates[2]".
        names: the variables it uses.
        digest: 16 hexadecimal digits of SHA-256 of its text.
    """

    def __init__(self, text: str, where: str) -> None:
        """Compile.

        Raises:
            UserError: it is not Jinja.
        """
        self.where = where
        self.digest = digest(text)
        try:
            self._rendered = _environment().template(text)
            self.names = frozenset(jinja2.meta.find_undeclared_variables(_environment().parse(text))) - BUILT_IN
        except jinja2.TemplateError as error:
            shown = text if len(text) < 500 else f"{text[:500]}..."
            raise UserError(f"{where} is not a Jinja template: {error} (in {shown!r}).") from None

    def render(self, values: Mapping[str, Any]) -> str:
        """The text for one row, without surrounding white space.

        Raises:
            Unrenderable: the row has no value for a name.
        """
        try:
            return self._rendered(values).strip()
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise Unrenderable(f"{self.where}: {error}") from None

    def require(self, known: Iterable[str], lacks: str = "which no row has") -> None:
        """Check the names; `lacks` says what is wrong with one that is not among `known`.

        Raises:
            UserError: the template uses a name that is not among `known`.
        """
        known = sorted(set(known))
        for name in sorted(self.names):
            if name not in known:
                raise UserError(
                    f"{self.where} uses `{name}`, {lacks}.{nearest(name, known)} Names: {', '.join(known)}."
                )


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def compiled(texts: Iterable[str], where: str) -> list[Template]:
    """Compile a list of templates, called `where[0]`, `where[1]`, ..."""
    return [Template(text, f"`{where}[{i}]`") for i, text in enumerate(texts)]


def checked(texts: list[str], where: str) -> list[str]:
    """For pydantic validators: the texts, if all compile.

    Raises:
        ValueError: one does not, or there is none.
    """
    if not texts:
        raise ValueError("at least one template is needed")
    try:
        compiled(texts, where)
    except UserError as error:
        raise ValueError(str(error)) from None
    return texts


def variables(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a template sees of a Document: the keys of its metadata, and `text`."""
    metadata = json.loads(row["metadata"]) if row.get("metadata") else {}
    return {**metadata, "text": row["text"]}


def check_records(templates: Iterable[Template], known: Preflight, port: str = "records") -> None:
    """For `Stage.check`: the names that templates use, next to the first rows of the records, where there are some already.

    A name that none of them has may yet stand in a later row: it is told; one that looks like a name they have is a misspelling.

    Raises:
        UserError: for such a name.
    """
    given = [glimpse.rows for glimpse in known.inputs.get(port, [])]
    rows = [row for table in given if table is not None for row in table.select(["text", "metadata"]).to_pylist()]
    if not rows or any(table is None for table in given):
        return
    names = {name for row in rows for name in variables(row)}
    for one in templates:
        for name in sorted(one.names - names):
            if nearest(name, names):
                one.require(names)
            known.say(f"{one.where} uses `{name}`, which none of the first {len(rows)} records has.")


@cache
def template(name: str) -> Template:
    """A template that comes with Flywheel, by its path below generators/templates/, without the suffix."""
    file = files("generators").joinpath("templates", *f"{name}.jinja".split("/"))
    return Template(file.read_text(encoding="utf-8"), name)
