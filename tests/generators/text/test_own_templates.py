"""Prompts of one's own: what they may use is known before a run, what they say is what is asked, and they are in the key."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import pyarrow as pa
import pytest
from pydantic import ValidationError

from engine.errors import StageFailed, UserError
from engine.stage.preflight import Glimpse, Preflight
from engine.store.schema import DATASETS
from generators.corpus.stage import Corpus
from generators.grounded.qa_stage import GroundedQa
from generators.grounded.stage import Grounded
from generators.instructions.stage import METHODS, Instructions
from generators.judge.stage import Judge
from tests.generators.planned import Planned

TEMPLATES = Path(__file__).parents[3] / "generators" / "templates"
PROMPTS = {
    "grounded": Grounded.template_variables["answer"],
    **{name: Judge.template_variables[name] for name in Judge.template_variables},
    # `shown` is what `grounded` sends.
    **{f"grounded_qa/{name}": known for name, known in GroundedQa.template_variables.items() if name != "shown"},
    **{f"corpus/{name}": variables for name, variables in Corpus.template_variables.items()},
    **{
        f"{method.folder or method.model_fields['name'].annotation.__args__[0]}/{prompt}": variables  # pyright: ignore
        for method in METHODS
        for prompt, variables in method.template_variables.items()
    },
}


def test_every_prompt_is_listed_with_all_that_it_uses() -> None:
    files = {file.relative_to(TEMPLATES).with_suffix("").as_posix(): file for file in TEMPLATES.rglob("*.jinja")}
    assert set(PROMPTS) == set(files)
    assert set(GroundedQa.template_variables["shown"]) == set(PROMPTS["grounded"])
    for name, file in files.items():
        used = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(file.read_text()))
        assert used - {"range"} == set(PROMPTS[name]), name


STAGES: list[tuple[Any, dict[str, Any], str, str]] = [
    (Grounded, {}, "{{ question }}", "question"),
    (Judge, {"pairwise": True}, "{{ first }} {{ second }} {{ prompt[0].content }}", "first"),
    (Judge, {"pairwise": True, "graded": True}, "{{ first }}", "first"),
    (Judge, {"rubric": True}, "{{ completion }}", "completion"),
    (Instructions, {"method": {"name": "multi_turn"}, "count": 1}, "{{ messages }}", "messages"),
    (Corpus, {"documents": 1, "styles": ["wiki"]}, "{{ text }}", "text"),
]


@pytest.mark.parametrize(("kind", "config", "text", "name"), STAGES)
def test_an_unknown_name_is_refused_before_the_run(
    kind: Any, config: dict[str, Any], text: str, name: str, tmp_path: Path
) -> None:
    wrong = text.replace(name, name[:-1] + "q")
    with pytest.raises(
        ValidationError, match=f"uses `{name[:-1]}q`, which this prompt has no value for. Did you mean `{name}`"
    ):
        kind.model_validate({**config, "template": wrong})
    (tmp_path / "mine.jinja").write_text(wrong)
    stage = kind.model_validate({**config, "template": "mine.jinja"})
    with pytest.raises(UserError, match=rf"\(mine.jinja\) uses `{name[:-1]}q`.* Did you mean `{name}`"):
        stage.check(Preflight(base=tmp_path))
    with pytest.raises(UserError, match=r"is .*mime.jinja, and there is no such file. Did you mean `mine.jinja`"):
        kind.model_validate({**config, "template": "mime.jinja"}).sources(str(tmp_path))
    with pytest.raises(ValidationError, match="is not a Jinja template"):
        kind.model_validate({**config, "template": "{{ broken"})


@pytest.mark.parametrize(("kind", "config", "text", "name"), STAGES)
def test_what_a_file_says_is_in_the_key_and_where_it_is_is_not(
    kind: Any, config: dict[str, Any], text: str, name: str, tmp_path: Path
) -> None:
    def key(file: str) -> tuple[Any, Any]:
        stage = kind.model_validate({**config, "template": file})
        assert kind.model_validate(stage.model_dump(mode="json")) == stage
        return stage.identity(), stage.sources(str(tmp_path))

    for place in ("one.jinja", "two.jinja", "other.jinja"):
        (tmp_path / place).write_text(text if place != "other.jinja" else f"{text}!")
    assert key("one.jinja") == key("two.jinja") != key("other.jinja")
    assert key(text) != key(f"{text}!") and not key(text)[1]
    assert "template" not in kind.model_validate(config).identity()  # what was made before stays where it is


def test_which_prompt_is_meant_has_to_be_clear() -> None:
    with pytest.raises(
        ValidationError,
        match=r"which prompt is `template` for\? Name it, `template: \{pairwise: ...\}`: pairwise, rubric",
    ):
        Judge.model_validate({"pairwise": True, "rubric": True, "template": "{{ prompt }}"})
    with pytest.raises(
        ValidationError, match=r"`template.pairvise`: no prompt of that name is sent. Did you mean `pairwise`"
    ):
        Judge.model_validate({"pairwise": True, "template": {"pairvise": "{{ prompt }}"}})
    with pytest.raises(ValidationError, match="this stage sends none: it asks no model"):
        Judge.model_validate({"rules": {"a": "length"}, "template": "{{ prompt }}"})
    with pytest.raises(ValidationError, match="which prompt is `template` for"):
        Instructions.model_validate({"method": {"name": "backtranslation"}, "template": "{{ text }}"})
    with pytest.raises(ValidationError, match="`template` needs a `method`"):
        Instructions.model_validate({"questions": ["{{ text }}"], "template": "{{ text }}"})


DOCUMENT = {"id": "d" * 32, "parents": [], "text": "Rome is a city.", "source": "s", "offset": 0}
QUESTION = {"id": "q" * 32, "prompt": [{"role": "user", "content": "What is Rome?"}]}
ANSWER = {
    **QUESTION,
    "id": "a" * 32,
    "prompt_id": "q" * 32,
    "completion": [{"role": "assistant", "content": "A city."}],
    "model": "m",
}


def test_what_a_template_says_is_what_is_asked(given: Any, build: Any, monkeypatch: Any, tmp_path: Path) -> None:
    backend = Planned(lambda asked, seed: '{"good": 4}' if asked.startswith("rate") else f"It is one. {seed}")
    for room in ("grounded", "judge", "corpus"):
        monkeypatch.setattr(f"generators.{room}.work.open_backend", lambda *a, **k: (backend, "planned"))
    monkeypatch.setattr("generators.instructions.rounds.open_backend", lambda *a, **k: (backend, "planned"))
    (tmp_path / "mine.jinja").write_text("tell {{ question }} by {{ passages | length }}\n")
    documents, prompts, answers = (
        given("Document", [DOCUMENT]),
        given("Prompt", [QUESTION]),
        given("Candidate", [ANSWER]),
    )
    made = build(Grounded, {"documents": documents, "prompts": prompts}, template="mine.jinja", base=str(tmp_path))
    assert backend.asked.pop() == "tell What is Rome? by 1" and made.rows == 1
    config: dict[str, Any] = {"rubric": {"good": "it is"}, "template": "rate {{ completion }} for {{ aspects.good }}"}
    assert build(Judge, {"candidates": answers}, **config).to_table()["value"].to_pylist() == [4.0]
    assert backend.asked.pop() == "rate A city. for it is"
    build(
        Corpus,
        {"records": documents},
        documents=1,
        styles=["wiki"],
        template="say {{ text }}",
        server={"model": "m", "url": "http://127.0.0.1:9/v1"},
    )
    assert backend.asked.pop() == "say Rome is a city."
    build(
        Instructions,
        {"records": documents},
        method={"name": "personas"},
        count=1,
        template={"request": "as {{ persona }}"},
    )
    assert backend.asked[0] == "as Rome is a city."


def test_a_row_that_a_template_can_not_be_rendered_for_is_rejected(given: Any, build: Any, monkeypatch: Any) -> None:
    backend = Planned(lambda asked, seed: "It is one.")
    for room in ("grounded", "judge"):
        monkeypatch.setattr(f"generators.{room}.work.open_backend", lambda *a, **k: (backend, "planned"))
    monkeypatch.setattr("generators.instructions.rounds.open_backend", lambda *a, **k: (backend, "planned"))
    inputs = {"documents": given("Document", [DOCUMENT]), "prompts": given("Prompt", [QUESTION])}
    stages: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
        (Grounded, inputs, {"template": "{{ passages[7].upper() }}"}),
        (Judge, {"candidates": given("Candidate", [ANSWER])}, {"rubric": True, "template": "{{ prompt[7].content }}"}),
        (
            Instructions,
            {"records": inputs["documents"]},
            {"method": {"name": "personas"}, "count": 1, "tries": 1, "template": {"request": "{{ examples[7].x }}"}},
        ),
    ]
    for kind, given_, config in stages:
        with pytest.raises(StageFailed, match=r"no row came out: unrenderable \(1\)"):
            build(kind, given_, max_failed=1.0, **config)
    assert not backend.asked


def test_templates_over_records_are_held_to_the_records_that_are_there() -> None:
    row = {**DOCUMENT, "metadata": json.dumps({"country": "France"})}
    rows = pa.Table.from_pylist([row], DATASETS["Document"])
    said: list[str] = []
    known = Preflight({"records": [Glimpse("facts", "Document", rows)]}, say=said.append)
    with pytest.raises(UserError, match=r"`questions\[0\]` uses `contry`, which no row has. Did you mean `country`"):
        Instructions.model_validate({"questions": ["{{ contry }}"]}).check(known)
    with pytest.raises(UserError, match="Did you mean `country`"):
        Corpus.model_validate({"documents": 1, "templates": ["{{ countri }}"]}).check(known)
    Instructions.model_validate({"questions": ["{{ zzz }}"], "answers": ["{{ country }} {{ text }}"]}).check(known)
    assert said == ["`questions[0]` uses `zzz`, which none of the first 1 records has."]
    unknown = Preflight({"records": [Glimpse("facts", "Document")]}, say=said.append)
    Instructions.model_validate({"questions": ["{{ contry }}"]}).check(unknown)


def test_the_command_line_lists_what_templates_may_use() -> None:
    program = "from engine.cli import main; main()"
    told = subprocess.run(
        [sys.executable, "-c", program, "stages", "judge"], capture_output=True, text=True, check=True
    ).stdout
    assert "\n  candidates\n      Candidate" in told and "\n  template\n" in told
    assert "the prompt `rubric`" in told and "{{ aspects }}\n      name of an aspect -> what it means" in told
