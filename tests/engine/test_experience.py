"""What a plan says that stages will take is what the nearest of those before took, by the amount of work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.execution.experience import Estimate, _line, estimates, in_words
from engine.plan.plan import make_plan
from engine.plan.recipe import load_recipe
from engine.store.sealed_json import sealed
from engine.store.store import Store


def took(store: Store, kind: str, wall_s: float, peak_mb: float = 2048.0, **config: Any) -> str:
    """Write into the manifest of the one artifact of a kind with this configuration what it took."""
    (made,) = (
        a for a in store.artifacts()
        if a.id.startswith(f"{kind}-") and config.items() <= a.manifest["stage"]["config"].items()
    )  # fmt: skip
    file = Path(store.path("artifacts", made.id, "manifest.json"))
    manifest = made.manifest
    manifest["timings"] |= {"wall_s": wall_s, "peak_rss_mb": peak_mb}
    file.write_bytes(sealed(manifest))
    return made.id


@pytest.fixture
def again(finished: Path, run_store: Store) -> Any:
    """Plan the toy recipe with other settings against the store of the finished one."""

    def plan(*settings: str) -> dict[str, Estimate]:
        loaded = load_recipe(finished / "toy.yaml", list(settings))
        return estimates(make_plan(loaded, run_store), run_store)

    return plan


def test_nothing_is_told_of_what_is_there(again: Any) -> None:
    assert again() == {}


def test_other_steps_take_in_proportion(again: Any, run_store: Store) -> None:
    made = {took(run_store, "toy_train", 35.0, 3072.0, steps=3), took(run_store, "toy_train", 55.0, 3072.0, steps=5)}
    told = again("other.steps=7")["other"]
    assert told.wall_s == pytest.approx(75.0) and told.peak_rss_mb == 3072.0
    assert told.like in made and told.scaled and told.differs == ("steps",)
    assert in_words(told, price=36.0).startswith("about 75 s, up to 3.0 GiB, 0.75 at 36 an hour (by toy_train-")


def test_two_sizes_tell_what_a_start_takes() -> None:
    assert _line([(10, 25.0), (30, 45.0)]) == pytest.approx((15.0, 1.0))
    assert _line([(10, 25.0)]) == (0.0, 2.5)
    assert _line([(10, 25.0), (20, 5.0)]) == (15.0, 0.0)
    assert _line([(10, 10.0), (30, 90.0)])[0] == 0.0


def test_the_command_tells_time_and_cost(finished: Path, run_store: Store, flywheel: Any, tmp_path: Path) -> None:
    took(run_store, "toy_shout", 7200.0, 512.0, times=2)
    said = flywheel("plan", finished / "toy.yaml", "--set", "louder.times=3", "--price", "2.5")
    assert said.returncode == 0, said.stderr
    assert "louder: about" in said.stdout and "at 2.5 an hour" in said.stdout and "`times`" in said.stdout
    told = json.loads(flywheel("plan", finished / "toy.yaml", "--set", "louder.times=3", "--json").stdout)
    estimate = {one["name"]: one["estimate"] for one in told}
    assert estimate["lines"] is None and estimate["louder"]["wall_s"] > 0
