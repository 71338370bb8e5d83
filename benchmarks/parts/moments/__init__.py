"""Moments to kill a run at: by its progress, never by the clock, so that every kill that is asked for happens on any machine.

    moments = Moments(folder, store)
    run(moments.environment)               # undisturbed: the span to draw from
    drawn = moments.draw(12, seed=11)
    storm = Moments(other_folder, other_store)
    for moment in drawn:
        storm.arm(moment)
        run(storm.environment)             # ends by SIGKILL
    storm.arm(None)
    run(storm.environment)                 # to its end
    assert storm.kills == 12

What a moment is stands in `sitecustomize.py`, which does the killing from within.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Moment:
    """So many renames in the store since the first attempt, and so many other touches of its files after the last one."""

    renames: int
    touches: int


class Moments:
    """The trace of a run's attempts on one store, and the moment at which the next one is killed.

    Args:
        folder: for the trace.
        store: the store's root, as the run is given it: an absolute path.
    """

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder, self.store = folder, store.absolute()
        folder.mkdir(parents=True)
        self.arm(None)

    @property
    def environment(self) -> dict[str, str]:
        """What to add for the command whose processes are watched. Start it in a session of its own."""
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {"PYTHONPATH": path, "FLYWHEEL_MOMENTS": str(self.folder)}

    def arm(self, moment: Moment | None, victims: str = "group") -> None:
        """Before an attempt: where it is killed, if at all.

        Args:
            victims: "group": the command's process group; "command": its own process alone; "stage": the process that has come to
                the moment; "both" of these.
        """
        place = [moment.renames, moment.touches] if moment else None
        with (self.folder / "trace").open("ab") as file:
            file.write(b"s")
        told = {"store": str(self.store), "moment": place, "victims": victims, "attempt": self.trace.count(b"s")}
        (self.folder / "moment.json").write_text(json.dumps(told))

    def fuse(self, batch: int, step: int) -> None:
        """Have the vLLM engine in a process of its own die once: before this step of this batch, both from 0."""
        (self.folder / f"fuse-{batch}").write_text(str(step))

    @property
    def fuses(self) -> int:
        """How many have not burnt yet."""
        return len(list(self.folder.glob("fuse-*")))

    @property
    def trace(self) -> bytes:
        return (self.folder / "trace").read_bytes()

    @property
    def kills(self) -> int:
        """How often it was killed, as the killers noted it."""
        return self.trace.count(b"k")

    def draw(self, count: int, seed: int) -> list[Moment]:
        """Distinct moments, in order, evenly over what the undisturbed run did.

        Raises:
            ValueError: it did less than that.
        """
        trace = self.trace.replace(b"s", b"")
        span = trace[: trace.rfind(b"r") + 1]  # after the last rename nothing is left that has to come
        places = sorted(random.Random(seed).sample(range(len(span)), count))
        return [Moment(span[:place].count(b"r"), place - 1 - span.rfind(b"r", 0, place)) for place in places]
