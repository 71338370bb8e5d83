"""Runs: cached when nothing changed, anew when something did, and the same bytes however often they are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import flywheel
from benchmarks.parts.moments import Moments
from engine.errors import StageFailed, UserError
from engine.plan.plan import Planned, make_plan
from engine.plan.recipe import load_recipe
from engine.store.store import Store
from tests.engine.conftest import RECIPE


def digests(store: Path) -> dict[str, str]:
    return {a.id: a.digest for a in Store(str(store)).artifacts()}


def plan_of(recipe: Path, text: str, store: str) -> dict[str, Planned]:
    recipe.write_text(text)
    return {stage.name: stage for stage in make_plan(load_recipe(recipe), Store(store))}


def test_second_run_is_cached_and_a_change_reruns_what_depends_on_it(
    recipe: Path, flywheel: Any, tmp_path: Path
) -> None:
    assert flywheel("run", recipe).returncode == 0
    first = digests(tmp_path / "store")
    assert len(first) == 5
    done = flywheel("run", recipe, "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [e["event"] for e in events] == ["plan", *["cached"] * 5]

    changed = RECIPE.replace("times: 2", "times: 3")
    recipe.write_text(f"# Lines, louder\n# than they were.\n#\n#   flywheel run toy.yaml\n{changed}")
    told = json.loads(flywheel("plan", recipe, "--why", "--json").stdout)
    assert {stage["name"]: stage["why"] for stage in told if not stage["cached"]} == {
        "louder": ["times: 2 -> 3"],
        "model": ["input documents changed: `louder`"],
    }
    assert flywheel("run", recipe).returncode == 0
    assert len(digests(tmp_path / "store")) == 7
    # What a recipe says of itself is noted with what was made, and a comment alone writes nothing: a finished store may be read-only.
    record = tmp_path / "store" / "runs" / "toy.json"
    noted = record.read_bytes()
    assert json.loads(noted)["about"] == "Lines, louder than they were."
    recipe.write_text(f"# Other words.\n{changed}")
    assert flywheel("run", recipe).returncode == 0 and record.read_bytes() == noted


@pytest.mark.parametrize(
    ("old", "new", "anew"),
    [
        ("seed: 3", "seed: 4", {"model", "other"}),  # stages without randomness don't care
        ("    times: 2", "    times: 2\n    seed: 9", set()),
        ("    times: 2", "    times: 2\n    style: {suffix: '?'}", {"louder", "model"}),
        ("    steps: 3", "    steps: 4", {"other"}),
        ("    steps: 3", "    steps: 3\n    seed: 5", {"other"}),
        ("    from: louder", "    from: loud", {"model"}),
        # none of these changes a byte
        ("    times: 2", "    times: 2\n    workers: 8", set()),
        ("    times: 2", "    times: 2\n    pause: 0.01", set()),
        ("    times: 2", "    times: 2\n    max_failed: 0.25", set()),
        ("name: toy", "name: renamed", set()),
        ("stages:", "# a comment\nstages:", set()),
        ("  loud:", "  noisy:", None),
    ],
)
def test_exactly_what_changes_the_bytes_is_identity(finished: Path, old: str, new: str, anew: set[str] | None) -> None:
    assert old in RECIPE
    changed = RECIPE.replace(old, new, 1)
    if anew is None:  # a stage by another name
        changed, anew = changed.replace("from: loud\n", "from: noisy\n"), set()
    plan = plan_of(finished / "changed.yaml", changed, str(finished / "store"))
    assert {name for name, stage in plan.items() if not stage.cached} == anew


def test_moving_everything_changes_nothing_and_touching_a_source_does(finished: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "deep" / "elsewhere"
    elsewhere.mkdir(parents=True)
    (elsewhere / "lines.txt").write_bytes((finished / "lines.txt").read_bytes())
    store = str(finished / "store")
    assert all(stage.cached for stage in plan_of(elsewhere / "toy.yaml", RECIPE, store).values())
    (elsewhere / "lines.txt").write_text("one\ntwo")
    plan = plan_of(elsewhere / "toy.yaml", RECIPE, store)
    assert not any(stage.cached for stage in plan.values())
    assert plan["lines"].why == ["files changed: lines.txt"]


def test_killed_at_random_moments_the_result_is_the_same(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(RECIPE.partition("  other:")[0] + "    steps: 30\n")
    calm, stormy = (Moments(tmp_path / f"{name}-moments", tmp_path / name) for name in ("calm", "stormy"))

    def run(moments: Moments) -> int:
        command = [sys.executable, "-c", "from engine.cli import main; main()", "run", str(recipe)]
        env = {**os.environ, **moments.environment, "FLYWHEEL_STORE": str(moments.store)}
        return subprocess.run(command, start_new_session=True, env=env, stderr=subprocess.DEVNULL).returncode

    assert run(calm) == 0
    for moment in calm.draw(10, seed=11):
        stormy.arm(moment)
        assert run(stormy) == -signal.SIGKILL
    stormy.arm(None)
    assert run(stormy) == 0
    assert stormy.kills == 10
    assert digests(tmp_path / "stormy") == digests(tmp_path / "calm")
    assert not list((tmp_path / "stormy" / "work").glob("*/checkpoint*"))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("exception", "ZeroDivisionError: planted"),
        ("empty", "no row came out"),
        ("exit", "its process ended with code 7"),
    ],
)
def test_a_stage_that_fails_says_why_and_leaves_no_artifact(recipe: Path, tmp_path: Path, how: str, says: str) -> None:
    recipe.write_text(RECIPE + f"  crash:\n    kind: toy_crash\n    from: lines\n    how: {how}\n")
    with pytest.raises(StageFailed, match=f"stage `crash` .*{says}"):
        flywheel.run(recipe, store=str(tmp_path / "store"))
    assert not [a for a in Store(str(tmp_path / "store")).artifacts() if a.id.startswith("toy_crash")]


def test_a_plain_file_stands_in_for_a_stage(recipe: Path, tmp_path: Path, flywheel: Any) -> None:
    (tmp_path / "mine.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    done = flywheel("stage", "toy_shout", "--from", "mine.jsonl", "--set", "times=2", "--to", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    import polars as pl

    assert pl.read_parquet(tmp_path / "out" / "data" / "*.parquet")["text"].to_list() == ["A!!", "B!!"]
    assert "toy_shout" in (tmp_path / "out" / "README.md").read_text()


def test_paths_can_not_leave_the_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="would leave the store"):
        Store(str(tmp_path)).put(b"x", "artifacts", "../../etc")


def test_trace_backwards_and_forwards(run_store: Store, flywheel: Any) -> None:
    shouted = run_store.find("toy/louder").to_polars()
    row = shouted.filter(text="LINE 7!!!").row(0, named=True)
    traced = json.loads(flywheel("trace", row["id"], "--json").stdout)
    middle = traced["from"][0]
    start = middle["from"][0]
    assert (middle["row"]["text"], start["row"]["text"]) == ("LINE 7!", "line 7")
    assert start["file"] == {"source": "lines.txt", "offset": 7, "paths": None}
    forward = json.loads(flywheel("trace", start["id"], "--forward", "--json").stdout)
    kinds = {entry["artifact"].rpartition("-")[0]: entry for entry in forward["touched"]}
    assert kinds["toy_train"]["kind"] == "Model"
    assert sum(entry.get("rows", 0) for entry in forward["touched"]) == 2
    assert flywheel("trace", "ffffffffffff").returncode == 2


def test_a_source_that_changes_after_the_plan_is_named_and_nothing_is_kept(recipe: Path, store: Store) -> None:
    class Editor:
        """Watches a run, and edits a file once the plan is made."""

        def start(self, plan: list[Planned]) -> None:
            (recipe.parent / "lines.txt").write_text("other lines")

        def event(self, stage: Planned, event: dict[str, Any]) -> None: ...

        def stop(self) -> None: ...

    with pytest.raises(UserError, match=r"lines\.txt changed after this run was planned"):
        flywheel.run(recipe, store=store.url, view=Editor())
    assert list(store.artifacts()) == []
    flywheel.run(recipe, store=store.url)
    assert store.find("toy/lines").to_table().column("text").to_pylist() == ["other lines"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: next((folder / "data").iterdir()).unlink(), r"data/\S+ is missing"),
        (lambda folder: next((folder / "data").iterdir()).write_bytes(b""), r"data/\S+ has 0 bytes instead of"),
        (lambda folder: (folder / "manifest.json").write_text(""), "manifest.json is damaged"),
        (lambda folder: (folder / "manifest.json").write_text('{"stages"'), "manifest.json is damaged"),
    ],
)
def test_what_is_incomplete_or_damaged_is_told_and_made_anew(
    run_store: Store, recipe: Path, flywheel: Any, damage: Any, says: str
) -> None:
    before = digests(Path(run_store.url))
    louder = run_store.find("toy/louder")
    damage(louder.path)
    told = json.loads(flywheel("plan", recipe, "--json").stdout)
    (anew,) = [stage for stage in told if not stage["cached"]]
    assert anew["name"] == "louder" and re.search(says, anew["why"][0])
    done = flywheel("run", recipe)
    assert done.returncode == 0 and re.search(rf"louder +made anew: .*{says}", done.stderr), done.stderr
    assert digests(Path(run_store.url)) == before and louder.verify() == []
    assert not list(Path(run_store.path("work")).iterdir())


def test_an_input_that_is_incomplete_is_read_anew(tmp_path: Path, flywheel: Any) -> None:
    (tmp_path / "mine.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert flywheel("stage", "toy_shout", "--from", "mine.jsonl").returncode == 0
    store = Store(str(tmp_path / "store"))
    read = next(made for made in store.artifacts() if made.id.startswith("external"))
    (read.place / read.parts()[0]).unlink()
    done = flywheel("stage", "toy_shout", "--from", "mine.jsonl", "--set", "times=2")
    assert done.returncode == 0 and re.search(r"mine.jsonl is read anew: data/\S+ is missing", done.stderr), done.stderr
    assert read.verify() == []
    (read.place / read.parts()[0]).unlink()
    done = flywheel(
        "stage", "toy_shout", "--from", read.id, "--set", "times=3"
    )  # nobody knows any more where it came from
    assert done.returncode == 1 and f"`flywheel repair {read.id}`" in done.stderr and "Traceback" not in done.stderr
