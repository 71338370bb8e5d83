"""Stages that work row by row end with the same bytes in one process and in two, in any order of their tasks, killed and continued."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipelines.index.work as indexing
import pipelines.mix.work as mixing
import pipelines.read.work as reading
import pipelines.tokenize.work as tokenizing
from engine.execution.executors.choice import LEAST_SET, open_executor
from engine.execution.executors.processes import Processes
from engine.execution.worker import carry_out
from engine.reader import ranges
from engine.stage.executor import Executor, Here
from engine.stage.job import Job
from engine.stage.stage import load
from engine.store.artifact import Artifact
from engine.store.store import Store
from pipelines.tokenize import packing
from tests.spreading import Killed, Shuffled

WORDS = ["river", "stone", "cloud", "sharp", "green", "paper", "light", "seven", "north", "winter", "glass", "quiet"]


def text(i: int) -> str:
    return f"Document {i}: " + " ".join(WORDS[(i * k + k) % 12] for k in range(1, 20 + i % 30)) + "."


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Files of rows, some of them broken, of which one is large."""
    folder = tmp_path / "lines"
    folder.mkdir()
    for name, count in (("a", 7), ("b", 150), ("c", 9), ("d", 4)):
        rows = [json.dumps({"text": text(i), "n": i}) for i in range(count)]
        rows[3:3] = ["", "{broken", '{"other": 1}', json.dumps({"text": "long " * 600})]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n" * (name != "d"))
    return folder


@pytest.fixture
def cases(
    lines: Path, given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[str, dict[str, Any], Any]]:
    """What to make: the stage's kind, its configuration, its inputs."""
    monkeypatch.setattr(reading, "PART_ROWS", 20)
    monkeypatch.setattr(reading, "GROUP_FILES", 2)
    monkeypatch.setattr(reading, "GROUP_BYTES", 10_000)
    monkeypatch.setattr(ranges, "LARGE", 10_000)
    monkeypatch.setattr(ranges, "RANGE", 4_000)
    monkeypatch.setattr(tokenizing, "PART_ROWS", 10)
    monkeypatch.setattr(tokenizing, "SLICE_BYTES", 1000)
    monkeypatch.setattr(packing, "SHARD_BYTES", 3000)
    monkeypatch.setattr(Job.slices, "__defaults__", (20, None, None))
    monkeypatch.setattr(mixing, "PART_ROWS", 30)
    monkeypatch.setattr(mixing, "BATCH_ROWS", 20)
    monkeypatch.setattr(mixing._Spill, "HELD", 1000)  # pyright: ignore[reportPrivateUsage]
    documents = given("Document", [{"id": f"d{i}", "parents": [], "text": text(i)} for i in range(200)])
    more = given("Document", [{"id": f"e{i}", "parents": [], "text": text(1000 + i)} for i in range(45)])
    both = {"documents": {"some": documents, "more": more}}
    # Of these, some stand in the documents, one twice as good as; `e7` is a row of both sources.
    asked = [{"id": f"q{i}", "parents": [], "text": text(i * 40) + " and a half" * (i % 2)} for i in range(6)]
    against = given("Document", [*asked, {"id": "none", "parents": [], "text": "nothing of this is anywhere at all"}])
    third = given("Document", [{"id": f"e{i}", "parents": [], "text": text(i), "quality": i / 9} for i in range(5, 9)])
    three = {"documents": {"some": documents, "more": more, "third": third}}
    monkeypatch.setattr(indexing, "DOCUMENTS", 20)
    monkeypatch.setattr(indexing, "SMALL", 15)
    earlier = carry_out(
        Store(str(tmp_path / "earlier")), "index", load("index").model_validate({}), {"documents": {"more": more}}
    )
    weights = {"weights": {"some": 1, "more": 2, "third": 1}, "epochs": 2.5, "seed": 1}
    return {
        "read": ("read", {"paths": [f"{lines}/*.jsonl"]}, {}),
        "tokenize": ("tokenize", {"vocab_size": 300, "block": 16, "validation": 0.1}, both),
        "decontaminate": ("decontaminate", {"ngram": 8}, {**both, "against": {"test": against}}),
        "contamination": ("contamination", {"ngram": 8}, {"training": both["documents"], "against": {"test": against}}),
        "mix": ("mix", weights, three),
        "curriculum": ("mix", {**weights, "curriculum": "-length", "unit": "bytes"}, three),
        "in_order": ("mix", {**weights, "shuffle": False}, three),
        "index": ("index", {"embedding": "static"}, both),
        "grown": ("index", {}, {**both, "index": {"earlier": earlier}}),
        "best_fit": ("tokenize", {"vocab_size": 300, "block": 16, "packing": "best_fit"}, both),
    }


Make = Callable[..., Artifact]


@pytest.fixture
def make(cases: Any, tmp_path: Path) -> Make:
    def run(case: str, executor: Executor, store: str = "") -> Artifact:
        kind, config, inputs = cases[case]
        config = load(kind).model_validate(config)
        place = Store(str(tmp_path / (store or f"{case}{len(list(tmp_path.iterdir()))}")))
        return carry_out(place, kind, config, inputs, executor=executor)

    return run


CASES = (
    "read",
    "tokenize",
    "best_fit",
    "decontaminate",
    "contamination",
    "mix",
    "curriculum",
    "in_order",
    "index",
    "grown",
)


@pytest.mark.parametrize("case", CASES)
def test_the_order_of_the_tasks_and_a_kill_change_no_byte(make: Make, case: str) -> None:
    alone = make(case, Here())
    assert len(alone.files("data/")) > 1
    assert {make(case, Shuffled(seed)).digest for seed in range(2)} == {alone.digest}
    for after in (0, 1, 3):
        with pytest.raises(KeyboardInterrupt):
            make(case, Killed(after), "killed")
    assert make(case, Here(), "killed").digest == alone.digest


def test_two_processes_make_the_bytes_of_one(make: Make) -> None:
    for case in CASES:
        made = make(case, Processes(2))
        assert made.digest == make(case, Here()).digest
        workers = made.manifest["timings"]["workers"]
        assert len(workers) > 1, f"{case} was not spread"


def test_little_is_done_here(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "workers" not in make("read", open_executor({"workers": 2})).manifest["timings"]
    monkeypatch.setenv(LEAST_SET, "0")
    assert "workers" in make("read", open_executor({"workers": 2})).manifest["timings"]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_large_file_in_ranges_has_the_rows_of_the_whole(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    rows = [{"text": f"{text(i)} ü", "n": i} if i % 9 else {"text": "", "n": i} for i in range(400)]
    if form == "jsonl":
        spelled = [json.dumps(row, ensure_ascii=False) if i % 50 else "[1]\n\n" for i, row in enumerate(rows)]
        spelled[200] = json.dumps({"text": "so long " * 2000, "n": 200})  # over several ranges
        (tmp_path / "rows.jsonl").write_text("\n".join(spelled))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=30)
    (tmp_path / "z.txt").write_text("after it")

    def rows_of(made: Artifact) -> Any:
        gone = made.rejected()
        return made.to_table().to_pylist(), gone.to_pylist() if gone else []

    whole = build("read", base=tmp_path, paths=["rows.*", "z.txt"])
    monkeypatch.setattr(ranges, "LARGE", 1000)
    monkeypatch.setattr(reading, "GROUP_BYTES", 1000)
    monkeypatch.setattr(ranges, "RANGE", 3000)
    cut = build("read", base=tmp_path, paths=["rows.*", "z.txt"])
    assert cut.key != whole.key and len(cut.parts()) > 4 > len(whole.parts())
    assert rows_of(cut) == rows_of(whole) and whole.rejected() is not None
    limited = build("read", base=tmp_path, paths=["rows.*", "z.txt"], limit=250)
    assert limited.to_table().to_pylist() == whole.to_table().to_pylist()[:250]


def test_what_has_no_lines_to_cut_at_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.reader.records import RecordOptions
    from engine.reader.sources import find

    monkeypatch.setattr(ranges, "LARGE", 100)
    monkeypatch.setattr(ranges, "RANGE", 300)
    lines = "\n".join(json.dumps({"text": text(i)}) for i in range(20))
    (tmp_path / "plain.jsonl").write_text(lines)
    (tmp_path / "wide.jsonl").write_text(lines, "utf-16")
    (tmp_path / "array.jsonl").write_text(json.dumps([{"text": text(i)} for i in range(20)]))
    (tmp_path / "line.jsonl").write_text(json.dumps({"text": text(1) * 20}))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1" + b"x" * 1000)
    cut = {file.name: ranges.ranges(file, file.suffix[1:], RecordOptions()) for file in find(["*"], tmp_path)}
    assert [name for name, of_file in cut.items() if of_file] == ["plain.jsonl"]
    bounds = [(one.begin, one.end) for one in cut["plain.jsonl"]]
    assert bounds[0][0] == 0 and bounds[-1][1] == len(lines.encode()) and len(bounds) > 3
    assert all(a[1] == b[0] and lines.encode()[b[0] - 1 : b[0]] == b"\n" for a, b in itertools.pairwise(bounds))
