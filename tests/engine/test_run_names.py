"""A run's name never comes to mean something else in silence, and what it meant stays within reach."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flywheel
from engine.errors import UserError
from engine.store import run_records
from engine.store.store import Store
from engine.upkeep.collection import find_unneeded, remove
from engine.view.run_history import add_tags, runs

Command = Callable[..., Any]


class Heard:
    """A view that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def start(self, plan: Any) -> None: ...
    def stop(self) -> None: ...

    def event(self, stage: Any, event: dict[str, Any]) -> None:
        if event["event"] == "say":
            self.said.append(event["text"])


def again(recipe: Path, store: Store, times: int, name: str | None = None) -> list[str]:
    """Run it with so many exclamation marks, and only as far as the one stage that has them; what was said."""
    heard = Heard()
    flywheel.run(
        recipe, store=store.url, overrides=[f"louder.times={times}"], only=["louder"], view=heard, name=name
    )  # fmt: skip
    return heard.said


def marks(store: Store, name: str) -> str:
    text = store.find(name).to_table(["text"])["text"][0].as_py()
    return text.removeprefix("LINE 0!")


def test_what_a_name_meant_stays_and_it_is_said(recipe: Path, run_store: Store) -> None:
    assert again(recipe, run_store, 2) == []
    (told,) = again(recipe, run_store, 5)
    assert told == "toy/louder now means something else (louder: times: 2 -> 5); what there was stays as toy@1"
    said = again(recipe, run_store, 3)
    assert len(said) == 1 and "times: 5 -> 3" in said[0] and said[0].endswith("stays as toy@2")
    assert (marks(run_store, "toy/louder"), marks(run_store, "toy@1/louder"), marks(run_store, "toy@2/louder")) == (
        "!!!", "!!", "!!!!!",
    )  # fmt: skip
    assert marks(run_store, "louder") == "!!!"  # by its stage alone: what it means now
    # What it meant before already is not kept twice.
    assert again(recipe, run_store, 2)[0].endswith("stays as toy@3")
    assert again(recipe, run_store, 5)[0].endswith("stays as toy@1")
    assert run_records.states(run_store, "toy") == ["toy@1", "toy@2", "toy@3"] and run_store.runs() == ["toy"]
    told = runs(run_store, "toy")
    assert [row["run"] for row in told] == ["toy@1", "toy@2", "toy@3", "toy"]
    assert [row.get("changed") for row in told] == [
        None, {"louder": ["times: 2 -> 5"]}, {"louder": ["times: 5 -> 3"]}, {"louder": ["times: 3 -> 5"]},
    ]  # fmt: skip


def test_a_run_of_its_own_name_moves_no_other(recipe: Path, run_store: Store) -> None:
    assert again(recipe, run_store, 5, name="louder-still") == []
    assert marks(run_store, "toy/louder") == "!!" and marks(run_store, "louder-still/louder") == "!!!!!"
    with pytest.raises(UserError, match=r"fits several artifacts"):
        run_store.find("louder")
    for name in ("a/b", ".hidden", "toy@1", "x" * 200, "a\nb"):
        with pytest.raises(UserError, match="`--as`"):
            again(recipe, run_store, 5, name=name)


def test_a_tag_stays_with_what_it_was_given_to(recipe: Path, run_store: Store) -> None:
    add_tags(run_store, "toy", ["baseline"], remove=False)
    again(recipe, run_store, 5)
    assert marks(run_store, "baseline/louder") == "!!" and run_records.tagged(run_store, "baseline") == "toy@1"
    with pytest.raises(UserError, match="`baseline` is a tag of toy@1"):
        add_tags(run_store, "toy", ["baseline"], remove=False)
    with pytest.raises(UserError, match="is the name of a run"):
        add_tags(run_store, "toy", ["toy"], remove=False)
    with pytest.raises(UserError, match="is a tag of toy@1"):
        again(recipe, run_store, 5, name="baseline")
    with pytest.raises(UserError, match="Did you mean `baseline`"):
        add_tags(run_store, "basline", ["x"], remove=False)
    add_tags(run_store, "toy@1", ["baseline"], remove=True)
    with pytest.raises(UserError):
        run_store.find("baseline/louder")


def test_gc_takes_what_a_name_meant_long_ago_unless_it_has_a_tag(recipe: Path, run_store: Store) -> None:
    again(recipe, run_store, 5)
    again(recipe, run_store, 3)
    add_tags(run_store, "toy@1", ["baseline"], remove=False)
    assert find_unneeded(run_store).unneeded == []  # it was this week
    ago = time.time() - 30 * 86400
    for file in Path(run_store.root).rglob("*"):
        os.utime(file, (ago, ago))
    found = find_unneeded(run_store).unneeded
    assert [one.place for one in found] == ["runs/toy@2.json", f"artifacts/{run_store.find('toy@2/louder').id}"]
    assert all(remove(run_store, one) for one in found)
    assert marks(run_store, "baseline/louder") == "!!" and marks(run_store, "toy/louder") == "!!!"
    with pytest.raises(UserError):
        run_store.find("toy@2/louder")


def test_the_commands_say_it(recipe: Path, run_store: Store, flywheel: Command) -> None:
    planned = flywheel("plan", recipe, "--set", "louder.times=5").stdout
    assert "toy/louder, toy/model would mean something else (louder: times: 2 -> 5)" in planned
    done = flywheel("run", recipe, "--set", "louder.times=5", "--only", "louder")
    assert "what there was stays as toy@1" in done.stderr and done.returncode == 0
    assert flywheel("tag", "toy@1", "first").stdout == "toy@1 is first.\n"
    told = flywheel("runs", "first").stdout
    assert "tagged first" in told and "louder: times: 2 -> 5" in told
    assert flywheel("show", "first/louder").returncode == 0
    assert "1 earlier: flywheel runs toy" in flywheel("runs").stdout
    assert "1 time before: flywheel runs toy" in flywheel("status").stdout
    as_ = flywheel("run", recipe, "--as", "other", "--only", "lines")
    assert as_.stderr.endswith("Look at it: flywheel report other\n")
