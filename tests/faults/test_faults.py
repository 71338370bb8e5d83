"""A short form of `make faults`: one of each sort, on stages that take seconds."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import bits, crowds, deaths, disks, garbles, services, shortages
from tests.faults.ground import Ground
from tests.faults.outcome import Outcome

pytestmark = pytest.mark.slow
STAGES = ["clean", "statements", "asked"]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with Ground(tmp_path_factory.mktemp("faults")).open(STAGES) as filled:
        yield filled


FAULTS: dict[str, Callable[[Ground], Outcome]] = {
    "worker": lambda g: deaths.kill(g, "statements", "worker", 1),
    "command": lambda g: deaths.kill(g, "asked", "command", 2),
    "term": lambda g: deaths.stop(g, "clean", signal.SIGTERM, 3),
    "crowd": lambda g: crowds.together(g, "asked", 2),
    "disk": lambda g: disks.full(g, "statements", "full at once"),
    "read-only": lambda g: disks.read_only(g, "clean"),
    "files": lambda g: shortages.short(g, "clean", "open files", 12),
    "server": lambda g: garbles.garble(g, "asked", 0.6),
    "away": lambda g: services.server_away(g, "asked", 2, 4),
    "repair": lambda g: bits.repair(g, "clean", 5),
    "unfinished": lambda g: bits.unfinished(g, "asked", 6),
}


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost_or_silent_and_the_digests_are_those_of_before(ground: Ground, name: str) -> None:
    if name in ("disk", "read-only") and not disks.possible():
        pytest.skip("a file system can be mounted by root only")
    outcome = FAULTS[name](ground)
    assert outcome.good or outcome.came == "unhurt", outcome


def test_every_file_of_a_store_tells_when_it_is_damaged(ground: Ground, tmp_path: Path) -> None:
    store = tmp_path / "store"
    ground.fill(store, "", gone=False)
    draw = random.Random(8)
    outcomes = [bits.damage(store, name, how, draw) for name in bits.files_of(store) for how in ("flip", "cut")]
    assert len(outcomes) > 20 and not [one for one in outcomes if one.came not in ("told", "unhurt")]
