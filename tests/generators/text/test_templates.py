"""Templates are strict, sandboxed and without randomness of their own."""

from __future__ import annotations

import pytest

from engine.errors import UserError
from generators.text.templates import Template, Unrenderable, checked


def test_an_undefined_name_is_named_with_its_nearest_spelling() -> None:
    template = Template("The capital of {{ contry }}", "`questions[0]`")
    with pytest.raises(UserError, match=r"`questions\[0\]` uses `contry`, which no row has. Did you mean `country`"):
        template.require(["country", "capital"])
    with pytest.raises(Unrenderable, match="'contry' is undefined"):
        template.render({"country": "France"})


def test_names_set_inside_a_template_are_not_asked_of_rows() -> None:
    Template("{% for i in range(2) %}{% set x = i %}{{ x }}{{ country }}{% endfor %}", "t").require(["country"])


@pytest.mark.parametrize(
    "text", ["{{ ''.__class__.__mro__ }}", "{{ lipsum() }}", "{{ [].append(1) }}", "{{ range(10000000) }}"]
)
def test_the_sandbox_holds(text: str) -> None:
    with pytest.raises(Unrenderable):
        Template(text, "t").render({})


def test_what_is_not_a_template_is_refused_with_its_place() -> None:
    with pytest.raises(ValueError, match=r"`answers\[1\]` is not a Jinja template"):
        checked(["fine", "{{ broken"], "answers")
    with pytest.raises(ValueError, match="No filter named 'random'"):
        checked(["{{ [1, 2] | random }}"], "answers")
