"""Nothing that comes from data reaches a terminal as anything but text, whichever command shows it."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import pty
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.execution.progress import Bars, Lines
from engine.execution.worker import carry_out
from engine.plan.recipe import Step
from engine.stage.job import Job
from engine.stage.stage import Stage, port
from engine.store.store import Store
from engine.text.visible import visible
from engine.view.console import PlainConsole, styled
from engine.view.output import put_json

ROOT = Path(__file__).parents[3]
# A colour, a title, a link, the clipboard, a device's answer, a bell, backspaces, an overwritten line, C1, DEL, bidi, nothing to see,
# half a surrogate pair, NUL; markup and an emoji's name, which are nothing but text.
HOSTILE = (
    "\x1b[31mred\x1b[0m \x1b]0;owned\x07 \x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\ \x1b]52;c;b3duZWQ=\x07 \x1bPq\x1b\\ \x07 "
    "abc\b\b\bxyz over\rwritten \x9b31m \x9d0;t\x9c \x7f \u202eevil\u202c \u2066x\u2069 a\u200bb\u2060c\ufeff \ud800 \x00 \x0b\x0c \x85 "
    "\u2028 \U000e0041 [bold]b[/bold] [link=http://evil.example]l[/link] :smile: [/]"
)

WORD = HOSTILE.replace("\x00", "").replace("\ud800", "\udcff")  # as an argument or a file name may be


def unseen(text: str) -> list[str]:
    """By Unicode's own categories: controls, formats, surrogates, line and paragraph separators."""
    return sorted(
        {f"{ord(c):04x}" for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    )


def test_what_is_unseen_is_shown_and_what_is_seen_stays() -> None:
    assert unseen(visible(HOSTILE)) == []
    assert visible("a\x1b[1m\u202eb\ud800", one_line=True) == "a\\x1b[1m\\u202eb\\ud800"
    assert (visible("a\nb\tc"), visible("a\nb\tc", one_line=True)) == ("a\nb\tc", "a\\nb\\tc")
    for kept in (
        "é 日本語 العربية",
        "می\u200cخواهم",
        "क्\u200dष",
        "👩\u200d👩\u200d👧 ❤\ufe0f\u200d🔥 1\ufe0f\u20e3",
        "葛\U000e0100",
    ):
        assert visible(kept) == kept
    assert visible("pass\u200dword") == "pass\\u200dword"  # a joiner that joins nothing
    assert visible("😀\ufe0f\ufe01\U000e0101") == "😀\ufe0f\\ufe01\\U000e0101"  # bytes smuggled behind an emoji
    # Every character alone, against the categories; Arabic and Egyptian signs that are formats are seen.
    left = [c for c in map(chr, range(0x110000)) if unseen(c) and visible(f"a{c}") == f"a{c}"]
    assert all(unicodedata.bidirectional(c) in ("AN", "AL", "L") for c in left), left


def test_a_console_styles_and_the_text_of_others_does_not() -> None:
    out = io.StringIO()
    console = PlainConsole(width=4000)
    console.file, console._force_terminal = out, True  # pyright: ignore
    console._color_system = console._detect_color_system()  # pyright: ignore
    console.print(styled((HOSTILE, "bold"), HOSTILE))
    console.print(HOSTILE)
    told = out.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert "\x1b[1m" in out.getvalue() and unseen(told) == []
    assert told.count("[bold]b[/bold] [link=http://evil.example]l[/link] :smile:") == 3


class HostileSource(Stage):
    """Rows whose every text is hostile, some of them rejected."""

    gives = "Document"
    name: str = ""

    def run(self, job: Job) -> None:
        text = HOSTILE.replace("\ud800", "")  # Arrow holds none
        ids = pa.array(["a" * 32])
        kept = {
            "id": ids,
            "parents": pa.array([[]], pa.list_(pa.string())),
            "text": [text],
            "source": [f"{text}.txt"],
            "offset": [3],
        }
        gone = {"id": ids, "text": [text], "reason": [f"re{text}"], "detail": [f"de{text}"], "evidence": [text]}
        job.commit("00000-rows", pa.table(kept), pa.table(gone))
        job.summary(**{f"key {text}": text})


class HostileModel(Stage):
    takes = {"documents": port("Document")}
    gives = "Model"

    def run(self, job: Job) -> None:
        (job.output / "weights.json").write_text("{}")
        job.summary(note=HOSTILE)
        job.spend(HOSTILE, tokens_in=3, tokens_out=4)


@pytest.fixture
def hostile(store: Store) -> Store:
    """A store whose run, stages, rows, reasons, labels and models have such names."""
    rows = carry_out(store, "source", HostileSource(name=HOSTILE.replace("\ud800", "")), {})
    model = carry_out(store, "model", HostileModel(), {"documents": {f"la{HOSTILE}": rows}})
    entry = {"kind": "source", "identity": rows.manifest["identity"], "inputs": {}}
    run: dict[str, Any] = {"recipe": HOSTILE, "stages": {f"st{HOSTILE}": {**entry, "artifact": rows.id}}}
    run["stages"]["model"] = {**entry, "kind": f"ki{HOSTILE}", "artifact": model.id}
    store.put(json.dumps(run).encode(), "runs", "ru\x1b[31m\u202e.json")
    return store


def invoke(store: Store, *arguments: str) -> str:
    """What a command prints, out and error together."""
    out = io.StringIO()
    from engine.cli import main

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        patch.setattr("sys.argv", ["flywheel", *arguments])
        patch.setenv("FLYWHEEL_STORE", store.url)
        try:
            main()
        except SystemExit as end:
            assert end.code in ((0, None) if "--json" in arguments else (0, None, 1, 2)), out.getvalue()
    return out.getvalue()


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"], ["show", "ROWS"], ["show", "ROWS", "--rejected"], ["show", "MODEL"], ["trace", "a" * 32],
        ["trace", "MODEL"], ["trace", "ROWS", "--forward"], ["show", f"no{WORD}"], ["trace", WORD], ["report", WORD],
        ["plan", f"{WORD}.yaml"], ["stages", WORD], [f"--{WORD}"], [WORD], ["run", "a.yaml", WORD],
        ["status", "--json"], ["show", "ROWS", "--json"], ["trace", "a" * 32, "--json"],
    ],
    ids=lambda arguments: visible(" ".join(arguments))[:24],
)  # fmt: skip
def test_every_command_shows_text(hostile: Store, arguments: list[str]) -> None:
    names = {a.id.partition("-")[0]: a.id for a in hostile.artifacts()}
    told = invoke(
        hostile, *(names["source"] if a == "ROWS" else names["model"] if a == "MODEL" else a for a in arguments)
    )
    assert unseen(told) == []
    assert "Traceback" not in told
    if "--json" in arguments:
        assert json.loads(told)


def test_a_notebook_shows_text(hostile: Store) -> None:
    shown = [artifact._repr_html_() for artifact in hostile.artifacts()]
    assert len(shown) == 2 and all(unseen(page) == [] and "\\x1b[31mred" in page for page in shown)


def test_a_name_of_two_lines_forges_none(store: Store) -> None:
    forged = "x\nflywheel: all is well"
    rows = carry_out(store, "source", HostileSource(name="plain"), {})
    model = carry_out(store, "model", HostileModel(), {"documents": {forged: rows}})
    record = {"stages": {forged: {"artifact": model.id, "kind": forged, "identity": {}, "inputs": {}}}}
    store.put(json.dumps(record).encode(), "runs", f"{forged}.json")
    for arguments in (["status"], ["show", model.id], ["trace", model.id]):
        lines = invoke(store, *arguments).splitlines()
        assert len(lines) > 1 and not any(line.strip().startswith("flywheel: all") for line in lines), arguments


def test_json_holds_every_character_and_comes_back_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    value = {HOSTILE: [HOSTILE, "日本 é", "\U000e0041\U0001f600"]}
    put_json(value)
    told = capsys.readouterr().out
    assert unseen(told) == [] and "日本 é" in told and "😀" in told
    assert json.loads(told) == value


class Planned:
    def __init__(self, name: str) -> None:
        self.name, self.step, self.folder, self.cached = name, Step(name, "ki\x1b", None, None, 1), "f", False  # pyright: ignore


def test_a_run_that_is_watched_shows_text(capsys: pytest.CaptureFixture[str]) -> None:
    stage: Any = Planned(HOSTILE)
    for view in (Bars(), Lines()):
        view.start([stage])
        for event in (
            {"event": "progress", "done": 1, "total": 2, "unit": HOSTILE}, {"event": "say", "text": HOSTILE},
            {"event": "metric", "step": 1, HOSTILE: 2.0}, {"event": "cached", "rows": 1},
        ):  # fmt: skip
            view.event(stage, event)
        view.stop()
    told = capsys.readouterr()
    assert unseen(told.out + told.err) == [] and "owned" in told.err
    events = [json.loads(line) for line in told.out.splitlines()]
    assert [event["text"] for event in events if event.get("event") == "say"] == [HOSTILE]


def on_terminal(program: str, **environment: str) -> str:
    """What a program sends to a terminal of its own."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", program], stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT,
                             env={**os.environ, "TERM": "xterm-256color", **environment})  # fmt: skip
    os.close(theirs)
    told = b""
    with contextlib.suppress(OSError):  # it has ended
        while block := os.read(ours, 65536):
            told += block
    child.wait()
    os.close(ours)
    return told.decode("utf-8", "surrogateescape")


def test_on_a_terminal_only_our_own_codes_are_sent() -> None:
    program = f"""
from engine.view.output import put, shown_as_text
from engine.execution.progress import Bars
from tests.engine.view.test_shown_as_text import Planned
import sys, warnings
text = {HOSTILE!r}
with shown_as_text():
    bars = Bars(); stage = Planned(text); bars.start([stage])
    bars.event(stage, {{"event": "progress", "done": 1, "total": 2, "unit": text}})
    bars.event(stage, {{"event": "say", "text": text}})
    print(text); warnings.warn(text); put(text)
    bars.stop()
    raise ValueError(text)
"""
    told = on_terminal(program)
    assert "owned" in told and "ValueError" in told
    for escape in ("\x1b]", "\x1b[31m", "\x07", "\x1bP", "\b", "\x9b", "\u202e", "over\rwritten"):
        assert escape not in told


@pytest.mark.parametrize(
    "environment", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"}]
)
def test_no_text_is_too_much_for_a_terminal(environment: dict[str, str]) -> None:
    program = f"""
from engine.view.output import put, put_json, shown_as_text
from engine.view.console import PlainConsole
from rich.table import Table
table = Table(); table.add_column("é"); table.add_row("日本")
put({HOSTILE!r} + "日本 é"); put("日本", error=True); put_json(["日本 é \\ud800"])
with shown_as_text():
    PlainConsole().print(table); print("日本 é \\ud800"); put_json(["日本"])
"""
    program = program.encode("ascii", "backslashreplace").decode()  # a command line is in the terminal's encoding, too
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, **environment}, capture_output=True
    )
    assert (done.returncode, done.stdout.isascii()) == (0, True), done.stderr.decode()
    assert b"\\u65e5\\u672c" in done.stderr
    assert json.loads(done.stdout.splitlines()[-2]) == "日本" and b"Traceback" not in done.stderr


# Whose standard output is no person's: a process of ours reads it.
PIPES = {
    "engine/user_code.py", "engine/execution/worker.py", "generators/rules/bounded_script.py", "generators/rules/sandbox/programs.py",
    "generators/backends/process/child.py", "generators/backends/process/host.py", "engine/execution/residents.py", "labeling/argilla/server/embedded/supervise.py",
    "engine/execution/keeper.py", "generators/rules/grading/program_process.py", "generators/rules/grading/judge_process.py",
    "generators/rules/sandbox/zygote.py",
    "pipelines/tokenize/checked.py",  # digests, to a file
    "engine/execution/stops.py",  # in a signal's handler: words of its own, and nothing else would do
}  # fmt: skip
DOORS = {"engine/view/output.py", "engine/view/console.py"}
OTHERWISE = (
    "rich.console",
    "rich.text",
    "rich.markup",
    "rich.print",
    "rich.markdown",
    "rich.logging",
    "click",
    "typer.echo",
)


def ways_out(tree: ast.AST) -> list[str]:
    """Ways to print that go past our doors."""
    found: list[str] = []
    typing = {
        inner for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }  # fmt: skip
    for node in ast.walk(tree):
        if node in typing:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found += [name for name in names if name in OTHERWISE]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in (*OTHERWISE, "rich")]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            printing = name in ("print", "pprint", "pprint.pprint", "os.write", "typer.echo", "typer.secho")
            if printing or name.startswith(("sys.stdout.w", "sys.stderr.w", "sys.__std")) or name.endswith("from_ansi"):
                found.append(name)
    return found


def test_no_file_prints_past_the_two_doors() -> None:
    assert ways_out(ast.parse("from rich.text import Text\nprint(1)\nimport sys; sys.stdout.write('')")) != []
    told: dict[str, Callable[..., Any] | list[str]] = {}
    for room in ("flywheel", "engine", "generators", "labeling", "pipelines", "training"):
        for file in sorted((ROOT / room).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            if name not in PIPES | DOORS and (ways := ways_out(ast.parse(file.read_text()))):
                told[name] = ways
    assert told == {}
