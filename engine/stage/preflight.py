"""What a stage is shown before a run, so that what can be known then is not found out in it.

`plan` opens every input of a stage that would run, and hands `Stage.check` the first rows of what is there. A stage binds its
expressions to them, imports its functions, opens its model's tokenizer and template, and asks its server whether it is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Glimpse:
    """What is known of one input.

    Attributes:
        name: what the recipe calls it.
        kind: of artifact.
        rows: its first rows, in the schema of its kind, where they exist: a file that people bring, or an artifact that is
            there already. None where a stage of this plan has yet to make it.
        model: where a model's files are (a folder, or a hub name), where it exists.
        config: what is known of a model's config.json, made or forecast.
    """

    name: str
    kind: str
    rows: pa.Table | None = None
    model: str | None = None
    config: dict[str, Any] | None = None


@dataclass(frozen=True)
class Preflight:
    """The inputs of a stage as far as they are known, by port.

    Attributes:
        base: the folder of the recipe, for paths in the configuration.
        offline: whether servers are left alone.
        say: prints one line beside the stage in the plan.
    """

    inputs: dict[str, list[Glimpse]] = field(default_factory=lambda: {})
    base: Path = Path()
    offline: bool = False
    say: Callable[[str], None] = print

    def first(self, port: str) -> Glimpse | None:
        """The first input of a port."""
        return next(iter(self.inputs.get(port, [])), None)
