"""A real browser looks at a report and a card full of what would like to run: nothing runs, and nothing leaves the page."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import markdown_it
import pyarrow as pa
import pytest
import yaml

from engine.execution.export import export_artifact
from engine.execution.worker import carry_out
from engine.stage.drawing import Curves, Intervals
from engine.stage.job import Job
from engine.stage.stage import Stage, port
from engine.store.store import Store
from engine.view.report import flow
from engine.view.report.page import write_report

OWN = "document.title='owned';window.owned=1"
PLACE = "http://127.0.0.1:{port}/asked"
HOSTILE = (
    f"<script>{OWN}</script><img src=x onerror=\"{OWN}\"><svg onload=\"{OWN}\"><a href=\"javascript:{OWN}\">a</a></script></style></svg>"
    "</title></textarea>--><style>@import '@PLACE@';body{background:url(@PLACE@)}</style><link rel=stylesheet href=@PLACE@>"
    "<iframe src=@PLACE@></iframe><img src='@PLACE@'><object data=@PLACE@></object><meta http-equiv=refresh content='0;url=@PLACE@'>"
    "{{ 7*7 }}{% raw %}data:text/html,<script>0</script> ' \" ` | \\ [l](javascript:1) ![i](@PLACE@) <@PLACE@> www.evil.example \x00\x1b]8;;x\x07\u202e&lt;"
)  # fmt: skip


class Tempted(BaseHTTPRequestHandler):
    """Counts whoever comes."""

    asked: list[str] = []

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        Tempted.asked.append(self.path)
        self.send_response(200)
        self.end_headers()


@pytest.fixture
def hostile() -> Iterator[str]:
    """The text, with an address in it that notices whoever asks."""
    Tempted.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Tempted)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield HOSTILE.replace("@PLACE@", PLACE.format(port=server.server_address[1]))
    server.shutdown()


class Tempting(Stage):
    """Everything that a report shows, with this text in every place."""

    takes = {"documents": port("Document", optional=True)}
    gives = "Document"
    narrows = True
    drawings = (Intervals("accuracy", "accuracy"), Curves(()))
    text: str
    license: str = ""

    def run(self, job: Job) -> None:
        text = self.text
        ids, parents = [f"{i:032x}" for i in range(6)], pa.array([[]] * 6, pa.list_(pa.string()))
        kept = pa.table(
            {"id": ids, "parents": parents, "text": [text] * 6, "source": [text] * 6, "split": ["train"] * 6}
        )
        gone = pa.table({"id": ids, "text": [text] * 6, "reason": [text] * 6, "detail": [text] * 6, "evidence": [text] * 6,
                         "kept_id": [ids[0]] * 6})  # fmt: skip
        job.commit("00000", kept, gone)
        row = {"accuracy": 0.5, "accuracy_low": 0.25, "accuracy_high": 0.75, text: text}
        sample = {"prompt": [{"role": "user", "content": text}], "reference": text, "answers": {text: text}}
        histogram = {"edges": [0, 1, 2], "kept": [1, 2], "removed": [3, 4], "bounds": [None, 1]}
        (job.output / "table.json").write_text(json.dumps({text: row}))
        (job.output / "samples.json").write_text(json.dumps([sample]))
        (job.output / "histograms.json").write_text(json.dumps({text: histogram}))
        table = {
            "title": text,
            "columns": [text, text],
            "rows": [[text, text]] * 2,
            "links": [f"javascript:{OWN}", f"data:text/html,{text}"],
        }
        job.write_log("tables.json", json.dumps([table]).encode())
        for step in range(3):
            job.metric(step, **{text: float(step)})
        job.summary(headline=text, **{text: {text: text}})
        job.spend(text, tokens_in=3, tokens_out=4)


class Imitating(Stage):
    takes = {"documents": port("Document")}
    gives = "Model"

    def run(self, job: Job) -> None:
        (job.output / "config.json").write_text("{}")
        job.summary(**{HOSTILE: HOSTILE})


@pytest.fixture
def page(store: Store, hostile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(flow, "load", lambda kind: Tempting)
    made = carry_out(store, "tempting", Tempting(text=hostile), {})
    entry = {"artifact": made.id, "kind": hostile, "identity": {}, "inputs": {}}
    name = hostile.replace("/", "∕").replace("\x00", "")[:60]
    second = {**entry, "inputs": {"documents": [[hostile, made.id]]}}
    record = {"recipe": hostile, "stages": {hostile: entry, f"two {hostile}": second}}
    store.put(json.dumps(record).encode(), "runs", f"{name}.json")
    return write_report(store, name, tmp_path / "page.html")


def running(browser: Any) -> list[Any]:
    """What a page has done that it should not."""
    return browser.execute_script(
        "return [window.owned || 0, document.querySelectorAll('script, iframe, object, embed, img, link, base, form, foreignObject').length,"
        " [...document.querySelectorAll('*')].filter(e => [...e.attributes].some(a => a.name.startsWith('on') ||"
        " /^\\s*(javascript|data):/i.test(a.value))).length, performance.getEntriesByType('resource').length]"
    )


def test_a_report_runs_nothing_and_asks_nobody(page: Path, hostile: str, browser: Any) -> None:
    browser.get(page.as_uri())
    assert running(browser) == [0, 0, 0, 0]
    assert browser.title.startswith("Flywheel: <script>")
    refused = [
        entry
        for entry in browser.get_log("browser")
        if "Content" in entry["message"] or "127.0.0.1" in entry["message"]
    ]
    assert (refused, Tempted.asked) == ([], [])
    # It is all there, as text: in tables, samples, pictures, reasons.
    seen = browser.execute_script("return document.body.textContent")
    assert seen.count("{{ 7*7 }}{% raw %}") >= 20 and "\\x00\\x1b]8;;x\\x07\\u202e" in seen
    assert not any(letter in page.read_text() for letter in "\x00\x1b\x07\u202e")


def test_what_would_get_into_a_report_all_the_same_is_stopped_by_its_policy(
    page: Path, hostile: str, browser: Any
) -> None:
    refresh = hostile[
        hostile.index("<meta") : hostile.index("{{")
    ]  # the one thing that a policy in the page can't stop
    page.write_text(page.read_text().replace("</main>", hostile.replace(refresh, "").replace("\x00", "") + "</main>"))
    browser.get(page.as_uri())
    assert running(browser)[0] == 0 and running(browser)[1] > 3  # they are in it, and do nothing
    assert Tempted.asked == []
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))


def test_a_card_is_what_it_says_and_nothing_more(store: Store, hostile: str, tmp_path: Path, browser: Any) -> None:
    licence = "mit\n---\nevil: true\n---\n"
    rows = carry_out(store, "tempting", Tempting(text=f"{hostile}\n```\n# {hostile}", license=licence), {})
    model = carry_out(store, "imitating", Imitating(), {"documents": {hostile: rows}})
    entry = {"kind": "x", "identity": {}, "inputs": {}}
    stages = {f"{hostile}\n": {**entry, "artifact": model.id}, "rows": {**entry, "artifact": rows.id}}
    store.put(json.dumps({"stages": stages}).encode(), "runs", "r.json")
    for artifact in (rows, model):
        folder = tmp_path / artifact.kind
        export_artifact(artifact, str(folder))
        text = (folder / "README.md").read_text()
        _, front, body = text.split("---\n", 2)
        assert set(yaml.safe_load(front)) <= {
            "license",
            "tags",
            "library_name",
            "configs",
            "size_categories",
            "task_categories",
        }
        tokens = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).parse(body)
        kinds = {inner.type for token in tokens for inner in (token, *(token.children or []))}
        assert not kinds & {"html_block", "html_inline", "link_open", "image"}
        headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
        assert headings[1:] == [
            heading
            for heading in (
                "In numbers",
                "Evaluation",
                "Columns",
                "Who judged",
                "Made from",
                "What it took",
                "Limits",
                "Recipe",
                "Versions",
            )
            if heading in headings
        ]
        page = tmp_path / "card.html"
        page.write_text(
            f"<!doctype html><meta charset=utf-8>{markdown_it.MarkdownIt('gfm-like', {'linkify': False}).render(body)}"
        )
        browser.get(page.as_uri())
        assert running(browser) == [0, 0, 0, 0] and browser.title == ""
    assert Tempted.asked == []
