"""Each method, held to what its paper says, with a model whose every answer is planned."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from engine.errors import StageFailed, UserError
from generators.backends.protocol import Failure
from generators.instructions.novelty import rouge_l, words
from generators.instructions.stage import Instructions
from generators.text.templates import template
from tests.generators.faulty_server import FaultyServer
from tests.generators.instructions.self_instructing import THINGS, SelfInstructing, task
from tests.generators.planned import Planned


def seeds(count: int = 12) -> list[dict[str, Any]]:
    return [
        {"id": f"{i:032x}", "parents": [], "text": "", "source": "seed", "offset": i, "metadata": json.dumps({
            "instruction": f"seed task {i} is about {THINGS[i % 10]} number {i}", "is_classification": i % 3 == 0,
            "instances": [{"input": f"in {i}", "output": f"out {i}"}]})}
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture
def make(given: Any, build: Any, monkeypatch: Any) -> Callable[..., Any]:
    """`make(reply, method, seeds=rows, **config)`: the artifact of a method, and the backend it asked."""

    def of(reply: Any, method: dict[str, Any], inputs: dict[str, Any] | None = None, **config: Any) -> Any:
        backend = reply if isinstance(reply, Planned) else Planned(reply)
        monkeypatch.setattr("generators.instructions.rounds.open_backend", lambda *a, **k: (backend, "planned"))
        rows = {
            name: given("Document", value) if isinstance(value, list) else value
            for name, value in (inputs or {}).items()
        }
        return build(Instructions, rows, method=method, **config), backend

    return of


def rows_of(artifact: Any) -> list[dict[str, Any]]:
    return [{**row, "metadata": json.loads(row["metadata"])} for row in artifact.to_table().to_pylist()]


def test_self_instruct(make: Any) -> None:
    made, backend = make(SelfInstructing(), {"name": "self_instruct"}, {"records": seeds()}, count=40, partition=4)
    rows = rows_of(made)
    assert made.rows == 40 and "shortfall" not in made.manifest["summary"]
    requests = [text for text in backend.asked if text.startswith("Here is the beginning")]
    for text in requests:  # eight demonstrations; two of them generated, once there are some
        shown = re.findall(r"^Task \d+: (.+)$", text, re.M)
        assert len(shown) == 8
    generated = [sum("seed task" not in t for t in re.findall(r"^Task \d+: (.+)$", text, re.M)) for text in requests]
    assert generated[0] == 0 and set(generated[-3:]) == {2}
    for row in rows:
        number = int(re.findall(r"exactly (\d+)", row["metadata"]["instruction"])[0])
        assert row["metadata"]["is_classification"] == (number % 3 == 0)
        asked, said = (message["content"] for message in row["messages"])
        assert (asked, said) == (
            (f"{task(number)}\n\ngiven {number}", "yes") if number % 3 == 0 else (task(number), f"done {number}")
        )
        assert set(row["metadata"]["templates"]) <= {template(f"self_instruct/{n}").digest for n in (
            "instructions", "classification", "input_first", "output_first")}  # fmt: skip
        assert {"model", "temperature", "seed", "method", "draft"} <= set(row["metadata"])
    # One token in and one out a question, each counted once, whoever was rejected.
    assert made.manifest["summary"]["tokens_in"] == made.manifest["summary"]["tokens_out"] == len(backend.asked)
    kept = [words(row["metadata"]["key"]) for row in rows]
    assert max(rouge_l(a, b) for i, a in enumerate(kept) for b in kept[:i]) < 0.7
    # Twelve and nineteen demonstrations at most; there are 4 and 8 seeds of each kind.
    shown = next(text for text in backend.asked if text.startswith("Is a task"))
    assert Counter(re.findall(r'"answer": "(yes|no)"}\n', shown)) == {"yes": 4, "no": 8}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Draw me", "length"),
        ("Describe the picture that follows", "beyond_text"),
        ("Write a program that sorts numbers", "write_a_program"),
        ("-- what is this thing for", "first_character"),
        ("seed task 1 is about clocks number 1", "not_novel"),
    ],
)
def test_what_self_instruct_leaves_out(make: Any, text: str, reason: str) -> None:
    def reply(asked: str, seed: int) -> str:
        return text if asked.startswith("Here is") else '{"answer": "no"}'

    with pytest.raises(StageFailed, match=f"no row came out: {reason}"):
        make(reply, {"name": "self_instruct"}, {"records": seeds()}, count=2, tries=2)


def test_a_shortfall_is_explained_by_reason(make: Any) -> None:
    def reply(asked: str, seed: int) -> Any:
        if asked.startswith("Here is"):
            kind = seed % 3
            return [task(1), "Draw pictures of three green lizards please", Failure("server_failed", "gone")][kind]
        return '{"answer": "no"}' if asked.startswith("Is a") else '{"input": "", "output": "x"}'

    made, _ = make(reply, {"name": "self_instruct"}, {"records": seeds()}, count=30, tries=2, max_failed=1.0)
    summary = made.manifest["summary"]
    assert made.rows == summary["delivered"] == 1 and summary["asked"] == 30 and summary["drafts"] == 60
    assert set(summary["reasons"]) == {"not_novel", "beyond_text", "server_failed"}
    assert sum(summary["reasons"].values()) == 59
    assert summary["reasons"] == made.manifest["rejected"]
    assert re.match(
        r"29 of 30 are missing: `tries: 2` allows no more drafts after 60 drafts \(\d+ ", summary["shortfall"]
    )


def test_a_killed_run_ends_with_the_same_rows(make: Any, given: Any, build: Any, store: Any, tmp_path: Any) -> None:
    from engine.execution.worker import carry_out
    from engine.store.store import Store

    config: dict[str, Any] = {"method": {"name": "self_instruct"}, "count": 24, "partition": 3, "seed": 0}
    inputs = {"records": {"s": given("Document", seeds())}}

    def reply(asked: str, seed: int) -> str:  # a function of what is asked, as a model is
        if asked.startswith("Here is"):
            return task(seed % 997)
        return '{"answer": "no"}' if asked.startswith("Is a") else f'{{"input": "", "output": "{seed}"}}'

    whole, _ = make(reply, config["method"], {"records": seeds()}, count=24, partition=3)

    class Killed(Exception): ...

    elsewhere = Store(str(tmp_path / "elsewhere"))
    for end in (7, 30, 61, 10_000):
        count = 0

        def fragile(asked: str, seed: int, end: int = end) -> Any:
            nonlocal count
            count += 1
            return Killed() if count == end else reply(asked, seed)

        backend = Planned(fragile)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("generators.instructions.rounds.open_backend", lambda *a, b=backend, **k: (b, "planned"))
            try:
                again = carry_out(elsewhere, "instructions", Instructions.model_validate(config), inputs)
            except Killed:
                continue
    assert again.digest == whole.digest and again.rows == 24  # pyright: ignore


def test_a_server_that_fails_gives_the_same_rows(given: Any, store: Any, tmp_path: Any) -> None:
    from engine.execution.worker import carry_out
    from engine.store.store import Store

    def reply(messages: list[dict[str, str]], seed: int) -> str:
        asked = messages[-1]["content"]
        if asked.startswith("Here is"):
            return task(seed % 997)
        return '{"answer": "no"}' if asked.startswith("Is a") else f'{{"input": "", "output": "{seed}"}}'

    made, inputs = list[Any](), {"records": {"r": given("Document", seeds())}}
    for share, place in ((0.0, store), (0.3, Store(str(tmp_path / "elsewhere")))):
        with FaultyServer(share=share, answer=reply, stall=0.5) as server:
            stage = Instructions.model_validate({
                "method": {"name": "self_instruct"}, "count": 6, "partition": 8, "seed": 0,
                "server": {"model": "m", "url": server.url, "timeout_s": 0.5, "attempts": 20},
            })  # fmt: skip
            made.append(carry_out(place, "instructions", stage, inputs))
            assert bool(server.faults) == bool(share)
    assert made[0].rows == 6 and made[0].digest == made[1].digest


def test_evol_instruct(make: Any) -> None:
    def reply(asked: str, seed: int) -> str:
        if asked.startswith(("Rewrite an instruction", "Take inspiration")):
            before = asked.split("Instruction:\n")[1].split("\n\nNew")[0]
            place = int(re.findall(r"task (\d+)", before)[0])
            if place == 1:
                return "This is the rewritten prompt about nothing at all"
            return f"evolved {seed} {seed // 7} {seed // 11} {seed // 13} from task {place}"
        if asked.startswith("Do these two"):
            return json.dumps({"answer": "yes" if "task 2" in asked.split("Second:")[1] else "no"})
        place = int(re.findall(r"task (\d+)", asked)[0])
        return {3: "Sorry, I can't.", 4: "It is, and so on..."}.get(place, f"an answer to {asked}")

    made, _ = make(
        reply, {"name": "evol_instruct", "generations": 3}, {"records": seeds(8)}, count=100, temperature=1.0
    )
    rows = rows_of(made)
    # Four of eight seeds survive, three times each; the others meet the four rules of elimination, every time.
    assert made.rows == 12
    assert made.manifest["rejected"] == {"copies_the_prompt": 3, "no_news": 3, "too_hard": 3, "says_nothing": 3}
    assert made.manifest["summary"]["shortfall"].startswith("88 of 100 are missing: every input was used after 24")
    by_lineage: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_lineage.setdefault(row["metadata"]["lineage"], []).append(row)
    assert {len(line) for line in by_lineage.values()} == {3}
    for seed, line in by_lineage.items():  # each evolves from its last evolution
        assert [row["metadata"]["generation"] for row in line] == [1, 2, 3]
        assert [row["parents"][0] for row in line] == [seed, line[0]["id"], line[1]["id"]]
    operations = {row["metadata"]["operation"] for row in rows}
    assert operations <= {"constraints", "deepening", "concretizing", "reasoning", "complicate_input", "breadth"}
    assert len(operations) >= 3


def test_personas(make: Any) -> None:
    people = [
        {"id": f"{i:032x}", "parents": [], "text": f"a keeper of {thing}", "source": "p", "offset": i}
        for i, thing in enumerate(THINGS)
    ]

    def reply(asked: str, seed: int) -> str:
        if "as this person would put it" in asked:
            thing = asked.split("keeper of ")[1].split()[0]
            return f"{task(seed % 9973)} {thing} {seed}"
        return f"Like this: {asked}"

    made, _ = make(reply, {"name": "personas", "requests": ["a riddle", "a plea"]}, {"records": people}, count=20)
    rows = rows_of(made)
    assert made.rows == 20 and Counter(row["parents"][0] for row in rows) == {p["id"]: 2 for p in people}
    assert {row["metadata"]["request"] for row in rows} == {"a riddle", "a plea"}
    for row in rows:
        asked, said = (m["content"] for m in row["messages"])
        assert row["metadata"]["persona"].split()[-1] in asked and said == f"Like this: {asked}"


def test_backtranslation(make: Any) -> None:
    pages = [
        {"id": f"{i:032x}", "parents": [], "text": f"Page {i}: {THINGS[i]} are old.", "source": "w", "offset": i}
        for i in range(10)
    ]

    def reply(asked: str, seed: int) -> str:
        page = int(re.findall(r"Page (\d)", asked)[0])
        return (
            f'{{"score": {page % 5 + 1}}}'
            if asked.startswith("Rate")
            else f"What is {page} known for among {THINGS[page]} and {THINGS[-page]}?"
        )

    made, _ = make(reply, {"name": "backtranslation", "threshold": 4, "tag": True}, {"records": pages})
    got = {int(row["messages"][-1]["content"][5]): row for row in rows_of(made)}
    assert set(got) == {3, 4, 8, 9} and made.manifest["rejected"] == {"low_score": 6}
    for page, row in got.items():
        assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant"]
        assert row["messages"][-1]["content"] == pages[page]["text"] and row["parents"] == [pages[page]["id"]]
        assert row["metadata"]["score"] == page % 5 + 1


def test_multi_turn(make: Any) -> None:
    def reply(asked: str, seed: int) -> str:
        return f"and {seed} more?" if asked.startswith("You are the person") else f"answer to [{asked}]"

    made, backend = make(
        reply, {"name": "multi_turn", "least": 2, "most": 4, "character": "a cook"}, {"records": seeds()}, count=30
    )
    for row in rows_of(made):
        roles = [m["role"] for m in row["messages"]]
        turns = row["metadata"]["turns"]
        assert roles == ["user", "assistant"] * turns and 2 <= turns <= 4
        for asked, said in zip(row["messages"][::2], row["messages"][1::2], strict=True):
            assert said["content"] == f"answer to [{asked['content']}]"
    assert {row["metadata"]["turns"] for row in rows_of(made)} == {2, 3, 4}
    told = next(text for text in backend.asked if text.count("You: ") == 2 and "You are the person" in text)
    assert "a cook" in told and told.index("seed task") < told.index("more?")


TOOLS = [
    {"name": "add", "description": "add two numbers", "python": "def add(a, b): return a + b",
     "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                    "required": ["a", "b"], "additionalProperties": False}},
    {"name": "weather", "description": "the weather in a city",
     "parameters": {"type": "object", "properties": {"city": {"type": "string", "minLength": 2}}, "required": ["city"]}},
]  # fmt: skip


def test_tool_calls(make: Any) -> None:
    def reply(asked: str, seed: int) -> str:
        if asked.startswith("An assistant has these tools"):
            about = f"{seed} {seed // 3} {seed // 7} {seed // 9}"
            if '"add"' in asked:
                b = ["2", '"two"', "5"][seed % 3]
                return f'{{"request": "add {about}", "calls": [{{"name": "add", "arguments": {{"a": 40, "b": {b}}}}}]}}'
            return (
                f'{{"request": "weather {about}", "calls": [{{"name": "weather", "arguments": {{"city": "Oslo"}}}}]}}'
            )
        if asked.startswith("That is not a valid answer"):
            return "still not"
        if asked.startswith("The tool"):
            return '{"sky": "grey"}'
        if asked.startswith("A user asked an assistant"):
            return json.dumps({"answer": "no" if "-> 45" in asked else "yes"})
        return "As the tools say."

    made, _ = make(
        reply, {"name": "tool_calls", "tools": TOOLS, "offered": 1, "calls": 1}, count=12, partition=16, max_failed=1.0
    )
    assert made.rows == 12
    results = set[str]()
    for row in rows_of(made):
        assert [m["role"] for m in row["messages"]] == ["user", "assistant", "tool", "assistant"]
        request, call, result, answer = row["messages"]
        name = row["metadata"]["tools"][0]
        assert request["content"].startswith(name) and answer["content"] == "As the tools say."
        (made_call,) = json.loads(call["tool_calls"])
        assert [made_call["function"]] == row["metadata"]["calls"] and made_call["function"]["name"] == name
        assert (result["tool_call_id"], result["name"]) == (made_call["id"], name) and not call["content"]
        (offered,) = json.loads(row["tools"])
        assert offered["type"] == "function" and offered["function"]["name"] == name
        results.add(result["content"])
    assert results == {"42", '{"sky": "grey"}'}  # 40 + 2 was computed by the tool itself; 40 + 5 did not serve
    assert set(made.manifest["rejected"]) - {"surplus"} == {"invalid_json", "meaning"}


def test_code_that_runs(make: Any) -> None:
    snippets = [
        {"id": f"{i:032x}", "parents": [], "text": f"def snippet_{i}(): ...", "source": "s", "offset": i}
        for i in range(3)
    ]

    def reply(asked: str, seed: int) -> str:
        if asked.startswith("Which programming"):
            return "recursion"
        if asked.startswith("Write a programming task"):
            place = int(re.findall(r"snippet_(\d)", asked)[0])
            return f"Write double{place}(x) {place} {place * 3} {place * 7}: twice its {THINGS[place]} argument in {THINGS[-place]}."
        place = int(re.findall(r"double(\d)", asked)[0])
        body, tests = [("2 * x", "assert double0(2) == 4"), ("3 * x", "assert double1(2) == 4"), ("x", "pass")][place]
        return f"Like so.\n```python\ndef double{place}(x): return {body}\n```\nTests:\n```python\n{tests}\n```"

    made, _ = make(reply, {"name": "code", "samples": 2}, {"records": snippets}, count=3, tries=1, max_failed=1.0)
    (row,) = rows_of(made)
    assert (
        row["reference"] == "assert double0(2) == 4" and row["metadata"]["solution"] == "def double0(x): return 2 * x"
    )
    assert row["messages"][1]["content"] == "Like so.\n```python\ndef double0(x): return 2 * x\n```\nTests:"
    assert made.manifest["rejected"] == {"tests_failed": 2}
    assert set(made.rejected().column("detail").to_pylist()) == {
        "failed: AssertionError",
        "the tests pass without a solution",
    }


def test_mathematics_with_two_ways_that_agree(make: Any) -> None:
    def reply(asked: str, seed: int) -> str:
        if asked.startswith("Write a new problem"):
            return task(int(re.findall(r"number (\d+)", asked)[0]))
        number = int(re.findall(r"exactly (\d+)", asked)[0])
        if "Write a Python program" in asked:
            return f"```python\nprint({number} * 1000 if {number} else 1 / 0)\n```"
        wrong = seed % 4 == 0 or number == 3
        return f"So it is \\boxed{{{number},000{'1' if wrong else ''}}}."

    made, _ = make(reply, {"name": "mathematics", "votes": 5}, {"records": seeds(6)}, count=6, tries=1, max_failed=1.0)
    rows = rows_of(made)
    kept = {int(row["reference"].replace(",", "")) // 1000: row for row in rows}
    lost = Counter(made.manifest["rejected"])
    assert set(kept) <= {1, 2, 4, 5} and set(lost) <= {"program_failed", "disagreement", "no_majority"}
    assert lost["program_failed"] + lost["disagreement"] >= 2 and len(rows) + sum(lost.values()) == 6
    for number, row in kept.items():
        assert row["messages"][1]["content"] == f"So it is \\boxed{{{number},000}}." and row["metadata"]["votes"] >= 3


def test_constitutional(make: Any, given: Any) -> None:
    def reply(asked: str, seed: int) -> str:
        if "Write the critique" in asked:
            return f"critique of {re.findall('Answer: (.*)', asked)[0]}"
        if "Rewrite the answer" in asked:
            return f"revised({re.findall('Answer: (.*)', asked)[0]})"
        return "first"

    prompt = [{"role": "user", "content": "How?"}]
    candidates = given("Candidate", [
        {"id": f"{i:032x}", "parents": [], "prompt_id": "p", "prompt": prompt, "sample": i, "model": "m",
         "completion": [{"role": "assistant", "content": f"answer {i}"}]} for i in range(3)
    ])  # fmt: skip
    principles = ["Be kind.", "Be brief."]
    made, _ = make(reply, {"name": "constitutional", "principles": principles, "revisions": 2}, {"seeds": candidates})
    rows = rows_of(made)
    assert {row["messages"][-1]["content"] for row in rows} == {f"revised(revised(answer {i}))" for i in range(3)}
    for row in rows:
        first, second = row["metadata"]["revisions"]
        assert {first["principle"], second["principle"]} == set(principles)
        assert second["critique"] == f"critique of revised({row['metadata']['initial']})"


def test_magpie_asks_with_the_template_alone(given: Any, build: Any, monkeypatch: Any, tiny: Any) -> None:
    from generators.backends.local_model import Local
    from generators.backends.protocol import Completion
    from generators.text.prompts import load_tokenizer

    tokenizer = load_tokenizer(str(tiny))
    prompts = list[str]()

    class Engine:
        max_model_len = 4096

        def generate(self, ids: Any, sampling: Any, seeds: Any) -> list[Completion]:
            said = list[Completion]()
            for prompt, seed in zip(ids, seeds, strict=True):
                prompts.append(tokenizer.decode(prompt))
                text = task(seed % 9973) if prompts[-1].endswith("<|user|>") else f"reply at {sampling.temperature}"
                said.append(Completion([*tokenizer(text)["input_ids"], tokenizer.eos_token_id], None, "stop"))
            return said

        def close(self) -> None: ...

    local = Local(Engine(), tokenizer)
    monkeypatch.setattr("generators.instructions.rounds.open_backend", lambda *a, **k: (local, "tiny"))
    made = build(
        Instructions, {}, method={"name": "magpie", "turns": 2, "system": "Be kind."}, count=5, temperature=1.1
    )
    assert made.rows == 5
    assert prompts[0] == "<|system|>Be kind.<|end|><|user|>"
    for row in rows_of(made):
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * 2
        assert row["messages"][1]["content"] == "reply at 0.0"
    with pytest.raises(UserError, match="needs the model itself"):
        build(Instructions, {}, method={"name": "magpie"}, count=5, server={"model": "m", "url": "http://127.0.0.1:1"})


def test_mistakes_in_the_recipe(make: Any) -> None:
    with pytest.raises(UserError, match="makes instructions from `seeds`"):
        make(lambda t, s: "", {"name": "self_instruct"}, count=3)
    with pytest.raises(UserError, match="how many"):
        make(lambda t, s: "", {"name": "self_instruct"}, {"records": seeds()})
    with pytest.raises(ValueError, match="`count` needs a `method`"):
        Instructions.model_validate({"questions": ["{{ a }}"], "count": 3})
    with pytest.raises(ValueError, match="`questions` is for templates"):
        Instructions.model_validate({"method": {"name": "magpie"}, "questions": ["{{ a }}"]})
    with pytest.raises(ValueError, match="not a JSON Schema"):
        Instructions.model_validate(
            {"method": {"name": "tool_calls", "tools": [{**TOOLS[0], "parameters": {"type": "objekt"}}]}}
        )


def test_templates_keep_their_key_and_a_method_its_own() -> None:
    plain = Instructions.model_validate({"questions": ["{{ a }}"], "seed": 1}).identity()
    assert set(plain) == {"seed", "questions", "answers", "reference", "system", "per_record", "split", "take"}
    # `from: facts` goes to the only port that takes Documents.
    assert [name for name, port in Instructions.takes.items() if "Document" in port.kinds] == ["records"]
    mine = Instructions.model_validate({"method": {"name": "magpie"}, "count": 3, "seed": 1}).identity()
    assert not set(plain) & set(mine) - {"seed"}


@pytest.mark.parametrize("config", [{"questions": ["{{ a }}"]}, {"method": {"name": "magpie"}, "count": 3}])
def test_a_configuration_survives_being_written_down(config: dict[str, Any]) -> None:
    stage = Instructions.model_validate({**config, "seed": 1})
    assert Instructions.model_validate(stage.model_dump(mode="json")) == stage  # how a worker gets it


FAULTY = {
    "no_content": lambda asked: "...",
    "echo": lambda asked: f"Task: {asked}",
    "loop": lambda asked: "tf." + "_reduce_sum" * 20,
}


@pytest.mark.parametrize("reason", FAULTY)
@pytest.mark.parametrize("name", ["evol_instruct", "personas", "multi_turn", "self_instruct", "constitutional"])
def test_answers_that_say_nothing_are_left_out_by_every_method(make: Any, name: str, reason: str) -> None:
    """Every second answer is one; each stands beside a good answer to the same kind of request."""
    spoilt, asked_of = list[str](), list[str]()

    def said(asked: str) -> str:
        asked_of.append(asked)
        if len(asked_of) % 2:
            return f"A word on this, {len(asked_of)}"
        spoilt.append(asked)
        return FAULTY[reason](asked)

    def reply(asked: str, seed: int) -> str:
        if asked.startswith(("Rewrite an instruction", "Take inspiration", "Here is the beginning")):
            return task(seed % 9973)
        if asked.startswith(("Is a task", "Do these two")):
            return '{"answer": "no"}'
        if asked.startswith("Make an example"):
            return json.dumps({"input": "", "output": said(task(int(re.findall(r"exactly (\d+)", asked)[-1])))})
        if "as this person would put it" in asked:
            return f"{task(seed % 9973)} {seed}"
        if "Write the critique" in asked:
            return "It could be kinder."
        if "Rewrite the answer" in asked:
            return said(asked.split("user: ")[1].split("\n")[0])
        return said(asked) if name != "constitutional" else "first"

    method: dict[str, Any] = {"name": name, **({"least": 1, "most": 1} if name == "multi_turn" else {})}
    rows = [{**row, "text": json.loads(row["metadata"])["instruction"]} for row in seeds(8)]
    inputs = {"records": rows}
    if name == "constitutional":  # a Document's own answer would be revised
        inputs = {"records": [{**row, "metadata": None} for row in rows]}
    made, backend = make(reply, method, inputs, count=4, tries=6)
    assert made.manifest["rejected"][reason] == len(spoilt) and made.rows > 0
    assert len(backend.forgotten) == len(spoilt)  # the next run asks for these again
    for row in rows_of(made):
        assert row["messages"][-1]["content"].startswith("A word on this")


def test_a_refusal_ends_a_draft_with_its_text_and_is_no_failure(make: Any) -> None:
    from generators.backends.protocol import Answer

    refusal = Answer("I won't.", "refusal", None, None, None, 1, 1)
    with pytest.raises(StageFailed, match=r"no row came out: refusal \(8\)\..*The model refuses"):
        make(lambda asked, seed: refusal, {"name": "evol_instruct", "generations": 1}, {"records": seeds(8)}, count=4)


def test_scores_and_what_to_change_are_told(make: Any) -> None:
    pages = [
        {"id": f"{i:032x}", "parents": [], "text": f"Page {i}: {THINGS[i]} are old.", "source": "w", "offset": i}
        for i in range(5)
    ]

    def reply(asked: str, seed: int) -> str:
        page = int(re.findall(r"Page (\d)", asked)[0])
        return f'{{"score": {3 + (page == 2)}}}' if asked.startswith("Rate") else f"What of {page} {THINGS[page]} now?"

    told = r"no row came out: low_score \(5\)\..*each: 3 \(4\), 4 \(1\); `threshold: 4` would have kept 1 of 5\."
    with pytest.raises(StageFailed, match=told):
        make(reply, {"name": "backtranslation"}, {"records": pages})
    made, _ = make(reply, {"name": "backtranslation", "threshold": 4}, {"records": pages}, count=5)
    summary = made.manifest["summary"]
    assert made.rows == 1 and summary["scores"] == {"3": 4, "4": 1}
    assert "`threshold: 3` would have kept 5 of 5" in summary["shortfall"]

    def same(asked: str, seed: int) -> str:
        return '{"answer": "yes"}' if asked.startswith("Do these two") else f"As it was, {seed}"

    with pytest.raises(StageFailed, match=r"no row came out: no_news \(5\)\..*says the same: .*`operations`"):
        make(same, {"name": "evol_instruct", "generations": 1}, {"records": seeds(5)})
