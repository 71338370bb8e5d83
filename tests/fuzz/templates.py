"""Templates over rows, as `columns`, `text` and prompts have them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import jinja2

from engine.text.bounded_template import BoundedEnvironment

ROOT = Path(__file__).parents[2]
ENVIRONMENT = BoundedEnvironment(most=5_000_000, work=0, undefined=jinja2.StrictUndefined)
ROW = {
    "text": "one two\nthree" * 20,
    "n": 7,
    "turns": [{"role": "user", "content": "q"}] * 3,
    "nested": {"a": [1, [2]]},
    "none": None,
}
# Whatever a template raises but a fault of ours: who renders one catches these.
ANSWERS = (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError)


def seeds() -> list[bytes]:
    shipped = [file.read_bytes() for file in sorted((ROOT / "generators/templates").rglob("*.jinja"))]
    own = [
        "{{ text * n }}{{ 'x'|center(n * 100) }}{{ '%5d' % n }}{{ '{:>9}'.format(n) }}{{ text.split()|join(', ') }}{{ nested|tojson }}",
        "{% set ns = namespace(x='a') %}{% for i in range(20) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x|length }}{{ [text] * 9 }}",
        "{% macro m(a) %}{{ a }}{{ m(a - 1) if a }}{% endmacro %}{{ m(5) }}{{ turns|map(attribute='role')|list }}{{ n ** 50 }}{{ text[::-1] }}",
        "{% for t in turns recursive %}{{ t.role }}{{ loop(turns) if loop.depth < 4 }}{% endfor %}{{ text|replace('o', text)|wordwrap(9) }}",
    ]
    return [*shipped, *(text.encode() for text in own)]


def attempt(data: bytes, folder: Path) -> None:
    text = data.decode("utf-8", "replace")
    for made in (ENVIRONMENT.template, ENVIRONMENT.expression):
        with contextlib.suppress(ANSWERS):
            str(made(text)(ROW))
