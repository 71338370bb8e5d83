"""Chat templates that loop, grow, recurse or reach for Python: each is refused in words, soon, in little memory."""

from __future__ import annotations

import resource
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine.errors import UserError
from generators.text.chat_template import ChatTemplate, Unusable
from generators.text.templates import Template, Unrenderable

ASK = [{"role": "user", "content": "hello"}]
GOOD = "{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>{% endfor %}"
LONG = "{% set ns = namespace(x='a') %}"
HOSTILE = {
    "a range": GOOD + "{% for i in range(10**9) %}{% endfor %}",
    "loops in loops": GOOD + "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that never run": GOOD + "{% for a in range(99999) if false %}{% for b in range(9) %}{% endfor %}{% endfor %}" * 3
    + "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "a long text": GOOD + "{{ 'a' * 3000000000 }}",
    "a long list": GOOD + "{% set x = [0] * 3000000000 %}",
    "doubling": GOOD + LONG + "{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "doubling by joining": GOOD + LONG + "{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "doubling by replacing": GOOD + LONG + "{% for i in range(64) %}{% set ns.x = ns.x.replace('a', 'aaaa') %}{% endfor %}",
    "a wide format": GOOD + "{{ '%3000000000d' % 1 }}",
    "a wide format of str": GOOD + "{{ '{:3000000000}'.format(1) }}",
    "centred": GOOD + "{{ 'a'.center(3000000000) }}{{ 'a'|center(3000000000) }}",
    "a large number": GOOD + "{% set x = 10 ** (10 ** 10) %}",
    "squares": GOOD + "{% set ns = namespace(x=9) %}{% for i in range(64) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "rounded far": GOOD + "{{ 1.5|round(1000000000, 'floor') }}",
    "nested lists": GOOD + "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "nested namespaces": GOOD
    + "{% set a = namespace(x=1) %}"
    + "{% set a = namespace(x=[a, a]) %}" * 30
    + "{{ a }}",
    "a macro that calls itself": GOOD + "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "a macro that calls itself twice": GOOD + "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a loop that calls itself": GOOD + "{% for x in [0] recursive %}{{ loop([0, 0]) }}{% endfor %}",
    "JSON far indented": GOOD + "{{ range(99999)|list|tojson(indent=100000) }}",
    "JSON far apart": GOOD + "{{ range(99999)|list|tojson(separators=('a' * 1000000, ':')) }}",
    "joined far apart": GOOD + "{{ range(99999)|join('a' * 1000000) }}",
    "maps": GOOD + "{{ ([range(99999)] * 9999)|map('list')|list|length }}",
    "letters": GOOD + LONG + "{% for i in range(24) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|list|length }}{{ ns.x|list|map('list')|list|length }}" * 9,
    "one text again and again": GOOD + "{% set x = 'a' * 9000000 %}{% for i in range(99999) %}{{ x.upper() }}{% endfor %}",
    "a text of the template": GOOD + "{% for i in range(99999) %}" + "b" * 100_000 + "{% endfor %}",
    "Python's classes": GOOD + "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "Python's globals": GOOD + "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "Python's format": GOOD + "{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}",
    "attr": GOOD + "{{ (''|attr('__class__')).mro() }}",
    "self": GOOD + "{{ self._TemplateReference__context.cycler.__init__.__globals__.os }}",
    "include": GOOD + "{% include '/etc/passwd' %}",
    "brackets": GOOD + "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "blocks": GOOD + "{% if true %}" * 3000 + "{% endif %}" * 3000,
    "a template too long": "a" * 2_000_000 + GOOD,
    "no Jinja": "{% for %}",
}  # fmt: skip


def tokenizer_of(template: str) -> Any:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "hello": 2, "user": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_in_words(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises((UserError, Unusable)) as told:
        ChatTemplate(tokenizer_of(HOSTILE[name])).prompt(ASK)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert "Traceback" not in str(told.value) and 20 < len(str(told.value)) < 700
    assert after.ru_maxrss - before.ru_maxrss < 700_000  # kB
    assert after.ru_utime - before.ru_utime < 60  # hours, if it were not bounded


def test_a_template_that_does_much_for_long_conversations_is_not_refused() -> None:
    """2,000 messages of 2,000 characters, gone over again for each as some templates do."""
    template = (
        "{% for m in messages %}{% if loop.index0 > 0 and messages[loop.index0 - 1].role == m.role %}!{% endif %}"
        "{% if '</think>' in m.content %}{% set c = m.content.split('</think>')[-1].lstrip('\\n') %}{% else %}"
        "{% set c = m.content|trim %}{% endif %}{{ '<s>' + m.role + '\\n' + c + '</s>' }}{% endfor %}"
    )
    messages = [{"role": ("user", "assistant")[i % 2], "content": "word " * 400} for i in range(2000)]
    text = ChatTemplate(tokenizer_of(template)).render(messages)
    assert text.count("</s>") == 2000 and len(text) > 3_900_000


@pytest.mark.parametrize(
    "name", ["a long text", "doubling", "a wide format", "nested lists", "a macro that calls itself", "attr", "blocks"]
)
def test_templates_of_recipes_are_bounded_the_same_way(name: str) -> None:
    text = "{{ text }}" + HOSTILE[name].removeprefix(GOOD)
    with pytest.raises((UserError, Unrenderable)):
        Template(text, "`template`").render({"text": "hello"})


def test_what_somebody_wrote_before_is_still_rendered() -> None:
    assert Template("{{ text|upper }} {{ 'ab' * 3 }} {% for i in range(3) %}{{ i }}{% endfor %}", "t").render(
        {"text": "hi"}
    ) == "HI ababab 012"  # fmt: skip
