"""Stages of a plan that don't depend on each other run side by side as far as there is room; by what they wrote down, not by the clock."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

import flywheel
from engine.errors import StageFailed, Waiting
from engine.execution import machine, scheduling
from engine.execution.machine import Machine
from engine.execution.scheduling import Schedule, lacking, ranks
from engine.plan.plan import Planned, make_plan
from engine.plan.recipe import load_recipe
from engine.stage.stage import Device, Footprint
from engine.store.artifact import Artifact
from engine.store.store import Store
from tests.engine.running import all_gone, start, until
from tests.engine.test_threads import V1, V2
from tests.engine.test_threads import machine as fake_machine


class Meeting:
    """A recipe of `toy_meet` stages, and what they wrote down."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ledger, self.recipe = folder, folder / "ledger", folder / "meeting.yaml"
        self.stages: dict[str, dict[str, Any]] = {}

    def add(self, name: str, *given: str, **fields: Any) -> None:
        sources = {"from": list(given)} if given else {}
        self.stages[name] = {"kind": "toy_meet", "name": name, "ledger": str(self.ledger), **sources, **fields}
        self.recipe.write_text(yaml.safe_dump({"name": "meeting", "stages": self.stages}, sort_keys=False))

    def run(self, **options: Any) -> dict[str, Artifact]:
        return flywheel.run(self.recipe, store=str(self.folder / "store"), **options)

    @property
    def lines(self) -> list[str]:
        return [line.rpartition(" ")[0] for line in self.ledger.read_text().splitlines()]

    @property
    def pids(self) -> set[int]:
        return {int(line.rpartition(" ")[2]) for line in self.ledger.read_text().splitlines()}


@pytest.fixture
def meeting(tmp_path: Path) -> Meeting:
    return Meeting(tmp_path)


def test_what_does_not_depend_on_each_other_overlaps_and_what_does_does_not(meeting: Meeting) -> None:
    meeting.add("a", until=["begins b"])
    meeting.add("b", until=["begins a"])
    meeting.add("c", "a", "b")
    done = meeting.run()
    assert list(done) == ["a", "b", "c"]
    assert set(meeting.lines[:4]) == {"begins a", "begins b", "ends a", "ends b"}
    assert meeting.lines[4:] == ["begins c", "ends c"]
    store = Store(str(meeting.folder / "store"))
    assert list((store.run("meeting") or {})["stages"]) == ["a", "b", "c"]
    assert not list(Path(store.path("work")).iterdir())


@pytest.mark.parametrize(
    ("fields", "options"),
    [({}, {"jobs": 1}), ({"memory": 1 << 50}, {}), ({"cores": 1000}, {}), ({"gpu": True}, {})],
)
def test_one_comes_after_the_other_where_so_many_jobs_or_so_much_room_are_not(
    meeting: Meeting, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    for name in ("a", "b", "c"):
        meeting.add(name, **fields)
    meeting.run(**options)
    assert meeting.lines == [f"{what} {name}" for name in "abc" for what in ("begins", "ends")]


def test_where_one_fails_those_under_way_end_nothing_begins_and_all_failures_are_told(meeting: Meeting) -> None:
    meeting.add("a", how="fails", until=["begins b", "begins c"])
    meeting.add("b", until=["fails a", "fails c"])
    meeting.add("c", how="fails", until=["begins b", "fails a"])
    meeting.add("after", "b")
    with pytest.raises(StageFailed, match=r"(?s)stage `a` .*planted.*\n.*stage `c` .*planted"):
        meeting.run()
    assert "begins after" not in meeting.lines
    store = Store(str(meeting.folder / "store"))
    record = store.run("meeting") or {}
    assert list(record["stages"]) == ["b"] and set(record["failed"]) == {"a", "c"}
    for name in "ac":
        meeting.add(name, until=[])
    assert meeting.run()["after"].rows == 1 and "failed" not in (store.run("meeting") or {})


def test_where_people_have_to_rank_all_else_is_made_first(meeting: Meeting) -> None:
    meeting.add("ranked", how="waits")
    meeting.add("trained", "ranked")
    meeting.add("b", until=["waits ranked"])
    meeting.add("c", "b")
    for options in ({}, {"jobs": 1}):
        if options:
            meeting.add("b")
        with pytest.raises(Waiting, match="people have to rank"):
            meeting.run(**options)
        assert meeting.lines[-1] in ("ends c", "waits ranked") and "begins trained" not in meeting.lines
        assert set((Store(str(meeting.folder / "store")).run("meeting") or {})["stages"]) == {"b", "c"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_ends_takes_all_its_stages_with_it_and_those_that_were_started_ahead(
    meeting: Meeting, number: signal.Signals
) -> None:
    meeting.add("a", until=["never"])
    meeting.add("b", until=["never"])
    meeting.add("c", "a", "b")
    run = start(meeting.folder, "run", meeting.recipe)
    until(lambda: meeting.ledger.exists() and len(meeting.lines) == 2)
    until(lambda: len(keepers(run.pid)) == 3 and len(workers(run.pid)) == 3)
    below = meeting.pids | keepers(run.pid)
    ahead = workers(run.pid) - meeting.pids
    assert len(ahead) == 1
    run.send_signal(number)
    said = run.communicate()[1]
    assert run.returncode == (143 if number == signal.SIGTERM else -9) and "Traceback" not in said
    until(lambda: all_gone(below | ahead))


def test_what_comes_next_is_started_ahead_and_the_same_process_does_the_work(
    meeting: Meeting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_AHEAD", str(tmp_path / "never"))
    meeting.add("one")
    meeting.add("two", "one")
    meeting.run(jobs=1)
    assert not (tmp_path / "never").exists()
    monkeypatch.setenv("TOY_AHEAD", str(meeting.ledger))
    meeting.stages.clear()
    meeting.add("a", until=["ahead"])
    meeting.add("b", "a")
    meeting.add("c", "b")
    meeting.run()
    lines = [line.split() for line in meeting.ledger.read_text().splitlines()]
    early = {line[-1] for line in lines if line[0] == "ahead"}
    assert early == {line[-1] for line in lines if line[:2] in (["begins", "b"], ["begins", "c"])}


def test_a_keeper_that_is_killed_takes_its_own_stage_with_it_and_no_other(meeting: Meeting) -> None:
    meeting.add("a", until=["never"])
    meeting.add("b", until=["begins a", "go on"])
    run = start(meeting.folder, "run", meeting.recipe)
    until(lambda: meeting.ledger.exists() and len(meeting.lines) == 2)
    (worker,) = {int(line.split()[2]) for line in meeting.ledger.read_text().splitlines() if " a " in line}
    (keeper,) = {one for one in keepers(run.pid) if worker in children(one)}
    os.kill(keeper, signal.SIGKILL)
    until(lambda: all_gone({worker, keeper}))
    with meeting.ledger.open("a") as file:
        file.write("go on 0\n")
    said = run.communicate()[1]
    assert run.returncode == 1 and "stage `a`" in said and "stage `b`" not in said
    assert "ends b" in meeting.lines


def children(pid: int) -> set[int]:
    return {int(one) for task in Path(f"/proc/{pid}/task").iterdir() for one in (task / "children").read_text().split()}


def workers(run: int) -> set[int]:
    return {child for keeper in keepers(run) for child in children(keeper)}


def keepers(run: int) -> set[int]:
    return {one for one in children(run) if b"engine.execution.keeper" in Path(f"/proc/{one}/cmdline").read_bytes()}


HERE = Machine(2, 8 << 30, Device("none", 8 << 30, gpu=False))


def test_the_longest_way_to_the_end_comes_first(meeting: Meeting) -> None:
    for name, *given in ("short", ), ("far", ), ("nearer", "far"), ("nearest", "nearer"), ("end", "nearest", "short"):  # fmt: skip
        meeting.add(name, *given)
    plan = make_plan(load_recipe(meeting.recipe), Store(str(meeting.folder / "store")))
    assert ranks(plan) == {"short": 1, "far": 3, "nearer": 2, "nearest": 1, "end": 0}
    schedule = Schedule(plan, HERE, None)
    assert [stage.name for stage in schedule.ready({})] == ["far", "short"]
    assert [stage.name for stage in Schedule(plan, HERE, 1).ready({})] == ["short", "far"]


def test_there_is_room_as_long_as_cores_memory_and_the_gpu_are_not_needed_twice() -> None:
    half, all_ = Footprint(1, 3 << 30), Footprint(math.inf, 1 << 30)
    assert lacking(all_, [], HERE) == set() == lacking(half, [half], HERE)
    assert lacking(half, [half, half], HERE) == {"cores", "memory"}
    assert lacking(Footprint(0, 1 << 30), [all_], HERE) == set()  # it waits for people
    assert lacking(all_, [half], HERE) == {"cores"}
    assert "memory" in lacking(Footprint(0, None), [half], HERE)
    assert lacking(Footprint(1, 0, gpu=True), [Footprint(0, 0, gpu=True)], HERE) == {"gpu"}


def test_who_waits_for_room_is_not_overtaken_by_who_takes_the_same(meeting: Meeting) -> None:
    names = ("running", "big", "small", "asks")
    for name in names:
        meeting.add(name)
    plan: dict[str, Planned] = {
        stage.name: stage for stage in make_plan(load_recipe(meeting.recipe), Store(str(meeting.folder / "store")))
    }
    schedule = Schedule(list(plan.values()), HERE, None)
    schedule.begin(plan["running"], Footprint(1, 0))
    ready = [(plan["big"], Footprint(2, 0)), (plan["small"], Footprint(1, 0)), (plan["asks"], Footprint(0, 0))]
    assert (schedule.choose(ready) or ("",))[0] == plan["asks"]
    assert (schedule.choose(ready[1:]) or ("",))[0] == plan["small"]
    schedule.jobs = 1
    assert schedule.choose(ready) is None


@pytest.mark.parametrize(
    ("mounts", "memberships", "files", "expected"),
    [
        ("", "", {}, 64 << 30),
        (V2.format(top="/"), "0::/a/b", {"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "1024\n"}, 1024),
        (V1.format(top="/").replace("cpu", "memory").replace("memoryacct", "hugetlb"), "4:memory,hugetlb:/", {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 64 << 30),
    ],
)  # fmt: skip
def test_memory_is_what_there_is_and_what_a_cgroup_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: str, memberships: str, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(machine, "_physical", lambda: 64 << 30)
    assert machine.memory(fake_machine(tmp_path, mounts, memberships, files)) == expected


def test_memory_for_a_process_ahead_is_left_to_what_runs(meeting: Meeting) -> None:
    for name, *given in ("a", ), ("b", "a"), ("c", "a"), ("d", "b"):  # fmt: skip
        meeting.add(name, *given)
    plan = make_plan(load_recipe(meeting.recipe), Store(str(meeting.folder / "store")))
    schedule = Schedule(plan, HERE, None)
    # d takes from b, whose process is there by then
    for running, expected in ((0, ["b", "c", "d"]), (5 << 30, ["b", "c"]), (6 << 30, ["b"]), (7 << 30, [])):
        schedule.waiting, schedule.running = list(plan), {}
        schedule.begin(plan[0], Footprint(1, running))
        assert [stage.name for stage in schedule.next_up({}, ahead=3)] == expected, running
    assert scheduling.AHEAD == 1 << 30
