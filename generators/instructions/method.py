"""What a method of making instructions is, and what its drafts may look at."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from engine import seeds
from engine.errors import UserError
from generators.backends.protocol import Sampling
from generators.drafts.drafts import Draft
from generators.text.prompts import Message

if TYPE_CHECKING:
    import numpy as np

    from generators.instructions.novelty import EarlierTexts


@dataclass(frozen=True)
class Seed:
    """A row that came in: a task, a persona, a document.

    Attributes:
        text: what the user asks; of a document, its text.
        answer: what the assistant says, or a known right answer, or "".
        values: metadata (of a document: its columns).
    """

    id: str
    text: str
    answer: str
    messages: list[Message]
    values: dict[str, Any]


@dataclass
class World:
    """What a draft may look at. Nothing in it changes during a round.

    Attributes:
        seeds: rows of the `seeds` port, or where a method needs seeds and has none, of `records`.
        records: rows of the `records` port.
        made: rows that earlier rounds made, in order (`id`, `messages`, `reference`, `metadata` as a mapping).
        latest: the last of them by the `lineage` in their metadata.
        known: everything a new row must differ from.
        sampling: as the recipe has it.
        tokenizer: of the model, if it runs on this machine.
    """

    seeds: list[Seed]
    records: list[Seed]
    known: EarlierTexts
    sampling: Sampling
    seed: int
    tokenizer: Any = None
    made: list[dict[str, Any]] = field(default_factory=lambda: list[dict[str, Any]]())
    latest: dict[str, dict[str, Any]] = field(default_factory=lambda: dict[str, dict[str, Any]]())
    _orders: dict[Any, list[int]] = field(default_factory=lambda: dict[Any, list[int]]())

    def remember(self, row: dict[str, Any]) -> None:
        """Take in a row of a round that was committed."""
        row = {**row, "metadata": json.loads(row["metadata"])}
        self.made.append(row)
        if lineage := row["metadata"].get("lineage"):
            self.latest[lineage] = row

    def random(self, number: int, *parts: str | int) -> np.random.Generator:
        """The generator of draft `number`."""
        return seeds.generator(self.seed, "synthesis", number, *parts)

    def nth(self, rows: list[Seed], number: int, *parts: str) -> Seed:
        """The row for draft `number`: all of them in an order of the seed's, then all in another, and so on."""
        lap, place = divmod(number, len(rows))
        key = (lap, len(rows), *parts)
        if key not in self._orders:
            self._orders[key] = seeds.shuffled(range(len(rows)), self.seed, "lap", lap, *parts)
        return rows[self._orders[key][place]]


class Method(BaseModel):
    """How instructions are made. A subclass is one procedure, in a file of its own in `methods/`."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    needs: ClassVar[tuple[str, ...]] = ()  # the ports that must be given; seeds that are Documents are `records`
    weights: ClassVar[bool] = False  # needs the model on this machine, not behind a server
    # The prompts it sends, `METHOD/PROMPT` below generators/templates/: PROMPT -> what a template may use -> what that is.
    template_variables: ClassVar[dict[str, dict[str, str]]] = {}
    folder: ClassVar[str] = ""  # of its templates, where that is not its name
    fresh: ClassVar[bool] = True  # a row must also be unlike the seeds; else it is one of them, gone on from

    def require(self, ports: set[str], server: bool) -> None:
        """Look whether what the method works from is there.

        Args:
            ports: of the stage, that have an input.
            server: whether a server answers.

        Raises:
            UserError: an input is missing, or the model is.
        """
        for name in self.needs:
            if name not in ports and not (name == "seeds" and "records" in ports):
                raise UserError(
                    f"this method makes instructions from `{name}`: say which, `from: {{{name}: ..., model: ...}}`."
                )
        if self.weights and server:
            raise UserError(
                "this method needs the model itself (`from: {model: ...}`); a `server:` hides its chat template."
            )

    def draft(self, world: World, number: int) -> Draft:
        """Begin draft `number`."""
        raise NotImplementedError

    def drafts(self, world: World) -> int | None:
        """How many drafts there are to make; None if there is no end to them."""
        return None

    def round(self, world: World) -> int | None:
        """The most drafts that may not see each other's results; None if it does not matter."""
        return None
