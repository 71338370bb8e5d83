from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.text.bounded_template import BoundedEnvironment, Excessive

BOUNDED = BoundedEnvironment(undefined=jinja2.StrictUndefined)
PLAIN = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
STRICT = BoundedEnvironment(
    most=2_500_000, undefined=jinja2.StrictUndefined, work=0
)  # as the other, in a twentieth of the time
BIG = "{% set x = 'a'*2000000 %}"
LOOP = "{% for i in range(100000) %}"

EXCESSIVE = [
    "{{ 'a'*3000000000 }}", "{{ 3000000000*'a' }}", "{{ [1]*100000000 }}", "{{ 2**10000000 }}",
    LOOP + LOOP + "{% endfor %}{% endfor %}", LOOP + "{% for b in range(100000) if false %}{% endfor %}{% endfor %}",
    LOOP + "{% if loop.last %}{% endif %}" + LOOP + "{% endfor %}{% endfor %}", LOOP + "x" * 90_000 + "{% endfor %}",
    "{% for a in range(100000) recursive %}{% if loop.depth < 3 %}{{ loop(range(100000)) }}{% endif %}{% endfor %}",
    *(f"{{% set ns = namespace(x={start}) %}}{{% for i in range(99) %}}{{% set ns.x = {again} %}}{{% endfor %}}{{{{ ns.x {use} }}}}"
      for start, again, use in (
          ("'a'", "ns.x ~ ns.x", ""), ("'a'", "ns.x + ns.x", ""), ("['a']", "[ns.x, ns.x]", ""), ("{}", "{'a': ns.x, 'b': ns.x}", ""),
          ("(1,)", "(ns.x, ns.x)", "== ns.x"), ("['a']", "ns.x + ns.x", "|join"), ("99", "ns.x * ns.x", ""), ("'a'", "'%s%s' % (ns.x, ns.x)", ""),
          ("'a'", "'{0}{0}'.format(ns.x)", ""), ("'a'", "[ns.x, ns.x]|join", ""), ("'a'", "ns.x|replace('a', 'aa')", ""),
      )),
    "{{ '%1000000000d' % 1 }}", "{{ '%*d' % (1000000000, 1) }}", "{{ '%.1000000000f' % 1 }}", "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 1000000000) }}", "{{ '%1000000000d'|format(1) }}", "{{ '{a:>{b}}'.format_map({'a': 1, 'b': 1000000000}) }}",
    "{{ 'a'|center(1000000000) }}", "{{ 'a'.ljust(1000000000) }}", "{{ 'a'.zfill(1000000000) }}", "{{ '\t'.expandtabs(1000000000) }}",
    "{{ (1).to_bytes(1000000000, 'big') }}", "{{ ('a'*1000000).replace('a', 'b'*1000000) }}", "{{ ('a'*1000000)|replace('a', 'b'*1000000) }}",
    "{{ ('b'*1000000).join('a'*1000000) }}", "{{ range(10000)|join('a'*10000) }}", "{{ ('a'*1000000).translate({97: 'b'*1000000}) }}",
    "{{ [1]|slice(1000000000)|list }}", "{{ [1]|batch(1000000000, ' ')|list }}", "{{ 1.5|round(1000000000) }}",
    "{{ 'a\n'|indent(1000000000, true) }}", "{{ {'a': 1}|tojson(1000000000) }}", "{{ ('a.'*1000000).encode('idna') }}",
    "{{ ('a '*1000000)|wordwrap(1, true, 'b'*1000000) }}", "{{ ('a'*30000000)|list }}", "{{ ('a '*10000000).split() }}",
    BIG + LOOP + "{{ x|upper|length }}{% endfor %}", BIG + LOOP + "{{ 'b' in x }}{% endfor %}", BIG + LOOP + "{% set y = x[1:] %}{% endfor %}",
    BIG + LOOP + "{{ x }}{% endfor %}", BIG + "{{ " + "x ~ " * 3000 + "x }}", "{{ dict.fromkeys(range(100000), 'x'*1000000)|tojson }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% for a in [1] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ self.x() }}{% block x %}{{ self.x() }}{{ self.x() }}{% endblock %}", "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "{% if 1 %}" * 3000 + "{% endif %}" * 3000, "{% for i in [1] %}" * 30 + "{% endfor %}" * 30, "x" * 1_000_001,
]  # fmt: skip


@pytest.mark.parametrize("template", EXCESSIVE, ids=lambda text: text[:60])
def test_what_would_take_minutes_or_gigabytes_is_refused(template: str) -> None:
    with pytest.raises(Excessive):
        STRICT.template(template)({})


@pytest.mark.parametrize(
    "template", ["{{ 'a'*3000000000 }}", "{% autoescape 'a'|center(1000000000) %}{% endautoescape %}"]
)
def test_constants_are_not_worked_out_by_the_compiler(template: str) -> None:
    BOUNDED.from_string(template)  # neither slow nor large: nothing of it is done yet


VALUES: Mapping[str, Any] = {
    "text": "One  two\nthree <b>four</b> fünf", "n": 7, "f": 2.5, "none": None, "yes": True, "day": datetime.date(2024, 2, 29),
    "turns": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "calls": [{"name": "f", "arguments": {"x": [1]}}]}],
    "items": [3, 1, 2], "nested": {"a": {"b": [1, 2]}, "c": "d"},
}  # fmt: skip
HONEST = [
    "{{ text }} {{ n + 1 }} {{ n // 2 }} {{ n ** 2 }} {{ f * 2 }} {{ -n }} {{ 'x' * n }} {{ n % 4 }} {{ '%s: %d, %5.1f' % (text, n, f) }}",
    "{% for t in turns %}{{ loop.index }}/{{ loop.length }} {{ t.role }}: {{ t['content'] }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for t in turns if t.role == 'user' %}{{ t }}{% else %}none{% endfor %}{% for x in [] %}{% else %}none{% endfor %}",
    "{% macro m(a, b=2) %}{{ a }}-{{ b }}{{ caller() if a == 3 }}{% endmacro %}{{ m(1) }}{% call m(3, b=4) %}in{% endcall %}",
    "{% set ns = namespace(s='') %}{% for i in items %}{% set ns.s = ns.s ~ i %}{% endfor %}{{ ns.s }}{{ ns.s|int + 1 }}",
    "{% for k, v in nested.items() %}{{ k }}={{ v }};{% endfor %}{{ nested.a.b[0] }}{{ nested['a']['b'][-1] }}{{ items[1:] }}{{ text[::-1] }}",
    "{{ items|sort|join('+') }} {{ items|map('string')|list }} {{ turns|map(attribute='role')|join(',') }} {{ turns|selectattr('calls', 'defined')|list|length }}",
    "{{ text|upper|trim|replace('ONE', 'Two')|truncate(12) }} {{ text.split() }} {{ text.splitlines()|first }} {{ '{:>8}|{}'.format(n, f) }} {{ text.center(40) }}",
    "{{ none is none }} {{ missing is defined }} {{ missing|default('d') }} {{ 'two' in text }} {{ 3 in items }} {{ n > 3 and n <= 7 }} {{ 'a' < 'b' < 'c' }}",
    "{{ turns|tojson }} {{ nested|tojson(indent=2) }} {{ text|indent(4, true) }} {{ items|batch(2, '-')|list }} {{ items|sum }} {{ f|round(1) }} {{ text|wordwrap(8) }}",
    "{% for a in [[1, [2, [3]]]] recursive %}{{ loop.depth }}{{ loop(a) if a is iterable }}{% endfor %}{{ (1, 2) }}{{ {'a': [1]} }}{{ day }}{{ day.year }}",
    "{% filter upper %}{{ text }}{% endfilter %}{% set b %}{{ n }}!{% endset %}{{ b }}{% with z = 5 %}{{ z }}{% endwith %}{{ cycler('a', 'b').next() }}{{ text|escape }}",
    "{% block head %}{{ n }}{% endblock %}{{ self.head() }}{{ dict(a=1) }}{{ range(5)|list }}{{ text|wordcount }}{{ items|reverse|list }}{{ nested|dictsort }}{{ items|max }}",
]  # fmt: skip


@pytest.mark.parametrize("template", HONEST, ids=lambda text: text[:60])
def test_honest_templates_render_as_in_plain_jinja(template: str) -> None:
    expected = PLAIN.from_string(template).render(VALUES)
    assert BOUNDED.template(template)(VALUES) == expected and expected


def test_a_row_may_be_large() -> None:
    text, turns = "word " * 4_000_000, [{"role": "user", "content": "q" * 1000}] * 2000
    made = BOUNDED.template("{% for t in turns %}{{ t.role ~ ': ' ~ t.content }}\n{% endfor %}{{ text|trim }}")
    assert len(made({"text": text, "turns": turns})) == 2000 * 1007 + len(text) - 1
    assert BOUNDED.expression("turns[:3]|map(attribute='role')|list")({"turns": turns}) == ["user"] * 3


def test_an_expression_gives_its_value() -> None:
    assert BOUNDED.expression("[n, items[0]]")(VALUES) == [7, 3]
    with pytest.raises(jinja2.TemplateSyntaxError):
        BOUNDED.expression("n +")
    with pytest.raises(Excessive):
        BOUNDED.expression("'a' * 3000000000")({})


def test_there_is_no_chance_in_a_template() -> None:
    for template in ("{{ items|random }}", "{{ lipsum() }}"):
        with pytest.raises(jinja2.TemplateError):
            BOUNDED.template(template)(VALUES)
