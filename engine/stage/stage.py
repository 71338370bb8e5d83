"""A stage: a typed configuration, the kinds of artifact it takes and gives, and a `run`.

A room adds a stage by writing a subclass and one line under `[project.entry-points."flywheel.stages"]`; engine finds it
by that table and imports the module only when a recipe names the kind.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from pydantic import BaseModel, ConfigDict, Field

from engine.errors import UserError, nearest
from engine.stage.drawing import Drawing

if TYPE_CHECKING:
    from engine.stage.job import Job
    from engine.stage.preflight import Preflight


class _NotIdentity:
    """Marks a field that changes how the work is done but not one byte of the result."""


NotIdentity = _NotIdentity()


@dataclass(frozen=True)
class Device:
    """What models are trained on: a GPU, or this machine where there is none.

    Attributes:
        memory: bytes.
    """

    name: str
    memory: int
    gpu: bool

    def less(self, share: float) -> Device:
        """The device without this share of a GPU's memory, which something else has. (Elsewhere memory is not shared out.)"""
        return replace(self, memory=int(self.memory * (1 - share))) if self.gpu else self


PREVIEW = "preview"  # the option of a job that is one (`Job.options`): requests are told (the event `exchange`)
GIB = 2**30
SLICE = 10_000  # rows that one process works on; more are spread over cores
HEAVY = 100 << 20  # bytes of weights from which on one step keeps all cores busy


@dataclass(frozen=True)
class Footprint:
    """What a stage takes of a machine while it is under way, whichever machine that is. Stages run side by side as far as there is room.

    Attributes:
        cores: that it keeps busy on average when it is alone; infinite: as many as there are; 0: it waits for people or a server.
        memory: bytes, at the most, of all its processes; None where nobody can say: it runs alone.
        gpu: whether it works on the GPU, which it then has for itself.
    """

    cores: float = 1
    memory: int | None = GIB
    gpu: bool = False


@dataclass(frozen=True)
class Port:
    """One named input of a stage.

    Attributes:
        kinds: the artifact kinds it accepts (`engine.store.schema.KINDS`).
        many: takes any number of artifacts instead of exactly one.
        optional: may be left out.
        labelled: the names the recipe gives the inputs show up in the result, so they belong to its identity.
    """

    kinds: tuple[str, ...]
    many: bool = False
    optional: bool = False
    labelled: bool = False


def port(*kinds: str, many: bool = False, optional: bool = False, labelled: bool = False) -> Port:
    return Port(kinds, many, optional, labelled)


@dataclass(frozen=True)
class Switch:
    """An option of the command line, `--NAME`, that sets fields of every stage that declares it, as `--set` does."""

    help: str
    settings: dict[str, str]


@dataclass(frozen=True)
class Audit:
    """A check that the plan adds beside a stage, as a stage of its own.

    Its kind takes `training`, all rows that the models on the port `models` were trained on, however indirectly, and
    `against`, what the stage takes on its port `rows`.
    """

    kind: str
    models: str
    rows: str


class Stage(BaseModel):
    """The configuration of one step. Subclasses add fields, set the class variables and implement `run`."""

    # Of thirty kinds a recipe uses some: each is built when it is first used.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    takes: ClassVar[dict[str, Port]] = {}
    gives: ClassVar[str] = "Document"
    # Raised by hand when the same configuration and inputs would give other bytes than before.
    version: ClassVar[int] = 1
    # A stage that draws random numbers carries the run's seed in its identity; one that does not, does not.
    random: ClassVar[bool] = False
    # Where the work is done, as `module:function`, called with the stage and the job. It is imported when the stage runs, so that
    # a configuration costs nothing; and the work can import its configuration, which a circle would not allow.
    work: ClassVar[str] = ""
    # What its process has in its environment, where that has no variable of the name: settings that libraries read as they are loaded.
    environment: ClassVar[dict[str, str]] = {}
    # For the report: which part of the work this is (stages of a phase have one colour), whether it takes rows away (the
    # funnel), and what to draw of the result.
    phase: ClassVar[str] = ""
    narrows: ClassVar[bool] = False
    drawings: ClassVar[tuple[Drawing, ...]] = ()
    # Of a stage that goes to people: what tells how they do, as `module:function`, called with its artifact, finished or not; a list of
    # `engine.stage.people.People`.
    oversight: ClassVar[str] = ""
    # What the `headline` of its summary means, for a reader of the report who does not know the stage.
    meaning: ClassVar[str] = ""
    # Ports whose artifacts the stage would find loaded, where the stage before had the same (`engine.execution.residents`).
    residents: ClassVar[tuple[str, ...]] = ()
    # Prompts that the stage sends: name -> what a template of one's own may use in it -> what that is. `flywheel stages KIND` lists it.
    template_variables: ClassVar[dict[str, dict[str, str]]] = {}
    # In a preview: ports of which it sees all rows, since what it makes of one row depends on the others; and whether it is tried at
    # all, which one that goes to people is not.
    whole: ClassVar[tuple[str, ...]] = ()
    previewed: ClassVar[bool] = True
    # Options of `flywheel run` and `plan` for recipes with this stage.
    switches: ClassVar[dict[str, Switch]] = {}

    seed: int | None = Field(None, ge=0, description="Overrides the recipe's seed for this stage.")
    max_failed: Annotated[float, NotIdentity] = Field(
        0.5, ge=0, le=1, description="Share of rows that may fail before the stage does."
    )

    def run(self, job: Job) -> None:
        """Do the work. A stage with its work in the same file overrides this instead of naming `work`."""
        module, _, name = self.work.partition(":")
        getattr(import_module(module), name)(self, job)

    def sources(self, base: str) -> dict[str, str]:
        """Digests of files outside the store that this stage reads, by a name that survives moving them.

        `base` is the folder of the recipe. Part of the stage's identity.
        """
        return {}

    def output(self, given: dict[str, list[str]]) -> str:
        """The kind this stage gives, when fed these kinds by port."""
        return self.gives

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        """How many rows to expect from inputs of these sizes (by port), where that is known; for `plan`."""
        return None

    def preview(self, rows: int) -> Stage:
        """The same stage for so few rows, where it says itself how many it makes; what it asks for these must not differ."""
        return self

    def audit(self) -> Audit | None:
        """The check that a recipe with this stage gets by itself, if any."""
        return None

    def forecast(self, given: dict[str, list[dict[str, Any]]], device: Device) -> dict[str, Any]:
        """What is known about the result before there is one, for `plan`.

        Args:
            given: by port, what is known about the inputs: what their stages forecast, and of those that exist `config`
                (a model's config.json) and `summary`.
            device: what models will be on.

        Returns:
            facts for the stages that take the result; `needs` is a sentence that `plan` prints, `memory` the bytes that it tells of.
        """
        return {}

    def footprint(self, given: dict[str, list[dict[str, Any]]], device: Device) -> Footprint:
        """What it takes of a machine while it is under way. Here: what follows from what it is given.

        Rows up to one slice are one process's work, more are spread; they are read in parts, or held in memory some eight times as
        large as in Parquet. Where there is a model, or one is made, there are torch and an engine, whose steps keep all cores
        busy if the weights are many: two models of a few million weights, side by side, take less time than one after the other.

        Args:
            given: as for `forecast`, and of inputs that exist: of rows `rows` and `bytes`, of a model `weights` (bytes).
        """
        inputs = [one for port in given.values() for one in port]
        rows, size = (sum(one.get(name, 0) for one in inputs) for name in ("rows", "bytes"))
        models: list[int] = [one["weights"] for one in inputs if "weights" in one]
        if 0 in models:  # a hub's, which nobody has seen yet
            return Footprint(math.inf, None, device.gpu)
        training: int | None = self.forecast(given, device).get("memory")
        if models or training is not None:
            here = 0 if device.gpu else training or 0
            heavy = max(models or [training or 0]) > HEAVY
            return Footprint(math.inf if heavy else 1, 6 * GIB + 8 * size + 3 * sum(models) + here, device.gpu)
        return Footprint(0 if self.asks() else math.inf if rows > SLICE else 1, GIB + 8 * size)

    def warm_up(self) -> tuple[str, ...]:
        """What its process does while what the stage takes is still being made: modules to import, and functions (`module:function`) to
        call. The work must not depend on it."""
        return (type(self).__module__, *([self.work.partition(":")[0]] if self.work else []))

    def check(self, known: Preflight) -> None:
        """Find out before the run what would fail in it; heavy libraries are imported only where something uses them.

        Raises:
            UserError: an expression that doesn't fit the columns, a function that can't be imported, a model without a usable
                template, a server that is not there ...
        """

    def asks(self) -> bool:
        """Whether it asks a server, which may answer otherwise another time. Answers are kept: to do it anew costs what failed alone."""
        return False

    def sieve(self) -> str | None:
        """The port each row of which comes out again, kept or rejected and none twice: `verify` counts them. None where rows are made."""
        return None

    def identity(self) -> dict[str, Any]:
        """The part of the configuration that changes the bytes of the result, as JSON."""
        skip = left_out(self)
        if not self.random:
            skip["seed"] = True
        return self.model_dump(mode="json", exclude=skip)


def left_out(config: Any) -> dict[Any, Any]:
    """What of a configuration, and of the ones in it, is no part of the identity, as pydantic's `exclude`."""
    if isinstance(config, BaseModel):
        fields = type(config).model_fields
        own: dict[Any, Any] = {name: True for name, field in fields.items() if NotIdentity in field.metadata}
        within = [(name, getattr(config, name)) for name in fields if name not in own]
    else:
        own = {}
        pairs = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
        within = list(cast(Iterable[tuple[Any, Any]], pairs))
    return own | {name: skip for name, value in within if (skip := left_out(value))}


def kinds() -> list[str]:
    """The stage kinds that are installed, in the order of the table in pyproject.toml."""
    return list(_table())


def _table() -> dict[str, Any]:
    return _read_table(tuple(sys.path))


@cache
def _read_table(path: tuple[str, ...]) -> dict[str, Any]:
    """What is installed on this path. A plan asks once a stage, and reading takes 20 ms."""
    return {entry.name: entry for entry in entry_points(group="flywheel.stages")}


def load(kind: str) -> type[Stage]:
    """Import the stage class of this kind.

    Raises:
        UserError: no such kind.
    """
    table = _table()
    if kind not in table:
        raise UserError(f"there is no stage kind `{kind}`.{nearest(kind, table)} Kinds: {', '.join(sorted(table))}.")
    loaded: type[Stage] = table[kind].load()
    return loaded
