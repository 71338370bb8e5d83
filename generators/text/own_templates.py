"""Prompts of one's own: Jinja in the recipe, or in a file beside it, in place of a prompt that comes with Flywheel.

    template: prompts/judge.jinja              # the stage sends one kind of prompt
    template: {score: "Rate {{ answer }}."}    # it sends several: one of them, by its name

Each stage says by name which prompts it sends and what their templates may use (`Stage.template_variables`). A file's content is part of
the stage's identity, its path is not. This file is what configurations import; `templates.py` compiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from engine.errors import UserError, nearest

if TYPE_CHECKING:
    from generators.text.templates import Template

Variables = Mapping[str, Mapping[str, str]]
ONLY = ""  # the name of the only prompt, before it is known which that is


def _named(value: Any) -> Any:
    return {ONLY: value} if isinstance(value, str) else value


OwnTemplates = Annotated[
    dict[str, str],
    BeforeValidator(_named, json_schema_input_type=str | dict[str, str]),
    Field(
        description="Jinja, or a file with it, instead of the stage's own prompt; where it sends several: prompt -> template."
    ),
]


def is_file(text: str) -> bool:
    """Whether this names a file: it is no template."""
    return not any(mark in str(text) for mark in ("{{", "{%", "{#"))


def resolve(given: Mapping[str, str], prompts: Sequence[str]) -> dict[str, str]:
    """Prompt -> its template or file.

    Args:
        prompts: those that the stage sends, as it is configured.

    Raises:
        ValueError: it sends no such prompt, or several where one is given.
    """
    if not given:
        return {}
    if not prompts:
        raise ValueError("`template` is for a prompt, and this stage sends none: it asks no model")
    if ONLY in given and len(prompts) > 1:
        raise ValueError(
            f"which prompt is `template` for? Name it, `template: {{{prompts[0]}: ...}}`: {', '.join(prompts)}"
        )
    resolved = {prompts[0] if name == ONLY else name: text for name, text in given.items()}
    for name in resolved:
        if name not in prompts:
            raise ValueError(
                f"`template.{name}`: no prompt of that name is sent.{nearest(name, prompts)} Prompts: {', '.join(prompts)}"
            )
    return resolved


def check_inline(given: Mapping[str, str], prompts: Sequence[str], variables: Variables) -> None:
    """For validators: the templates that stand in the recipe itself.

    Raises:
        ValueError: as `resolve`; or one is no Jinja, or uses a name that the prompt has no value for.
    """
    for name, text in resolve(given, prompts).items():
        if not is_file(text):
            try:
                _compile(text, f"`template.{name}`", variables[name])
            except UserError as error:
                raise ValueError(str(error)) from None


def identity(given: Mapping[str, str], prompts: Sequence[str]) -> dict[str, Any]:
    """What of it is part of the configuration's identity. Nothing where nothing is given, so that old keys stay."""
    named = {prompts[0] if name == ONLY and prompts else name: text for name, text in given.items()}
    return {"template": {name: None if is_file(text) else text for name, text in named.items()}} if given else {}


def sources(given: Mapping[str, str], prompts: Sequence[str], base: str) -> dict[str, str]:
    """Digests of the files among them, for `Stage.sources`.

    Raises:
        UserError: a file is not there.
    """
    from generators.text.templates import digest

    files = {name: text for name, text in resolve(given, prompts).items() if is_file(text)}
    return {f"template {name}": digest(_read(name, file, base)) for name, file in files.items()}


def load(
    given: Mapping[str, str], prompts: Sequence[str], variables: Variables, base: str | Path
) -> dict[str, Template]:
    """Prompt -> its template, for those that the recipe gives.

    Raises:
        UserError: a file is not there, is no Jinja, or uses a name that the prompt has no value for.
    """
    made: dict[str, Template] = {}
    for name, text in resolve(given, prompts).items():
        where = f"`template.{name}` ({text})" if is_file(text) else f"`template.{name}`"
        made[name] = _compile(_read(name, text, base) if is_file(text) else text, where, variables[name])
    return made


def _compile(text: str, where: str, known: Mapping[str, str]) -> Template:
    from generators.text.templates import Template

    made = Template(text, where)
    made.require(known, "which this prompt has no value for")
    if not text.strip():
        raise UserError(f"{where} is empty; expected the prompt, with the names {', '.join(known)}.")
    return made


def _read(name: str, text: str, base: str | Path) -> str:
    file = Path(base, Path(text).expanduser())
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        folder = file.parent
        close = (
            nearest(file.name, [one.name for one in folder.iterdir()]) if folder.is_dir() and not file.is_dir() else ""
        )
        why = "there is no such file" if isinstance(error, FileNotFoundError) else f"it can't be read ({error})"
        hint = "" if "." in file.name else " A template in the recipe itself has at least one {{ name }} in it."
        raise UserError(f"`template.{name}` is {file}, and {why}.{close}{hint}") from None
