"""`mix`: several sources of documents -> one, in wanted proportions, shuffled. The counts are exact and stated."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from engine.errors import UserError, nearest
from engine.stage.preflight import Preflight
from engine.stage.stage import Port, Stage, port


class Mix(Stage):
    """Take from each source its share; repeat a source no more often than `epochs` allows.

    A row that is taken again gets an id of its own, with the row as its parent. Which rows make up the last, partial
    epoch and where each row ends up is decided by a digest of the seed and the row's id, so neither depends on the
    order of the inputs' rows.
    """

    takes: ClassVar[dict[str, Port]] = {"documents": port("Document", many=True, labelled=True)}
    gives: ClassVar[str] = "Document"
    phase: ClassVar[str] = "curation"
    work: ClassVar[str] = "pipelines.mix.work:mix"
    narrows: ClassVar[bool] = True
    random: ClassVar[bool] = True

    weights: dict[str, float] | None = Field(
        None,
        description="Source -> share of the mix, by the names the recipe gives the inputs. None: all rows of each.",
    )
    temperature: float | None = Field(
        None, gt=0, description="Without weights: shares in proportion to size ** (1 / temperature)."
    )
    unit: Literal["documents", "bytes"] = Field("documents", description="What shares and `size` count.")
    size: int | None = Field(
        None, ge=1, description="Size of the mix; None: as large as `epochs` allows in these proportions."
    )
    epochs: float | dict[str, float] = Field(1.0, description="How often a source's rows may be taken, at most.")
    caps: dict[str, int] = Field(
        default_factory=lambda: {}, description="Source -> how much to take of it at most, in units."
    )
    curriculum: str | None = Field(
        None,
        description="Order by this, rising: `length` (bytes), or a column or field of `metadata` with a number; with `-` "
        "before it, falling. Rows without one come last; equal ones are shuffled.",
    )
    shuffle: bool = Field(True, description="Else: source after source, each in its order, epoch after epoch.")

    def check(self, known: Preflight) -> None:
        sources = known.inputs.get("documents", [])
        if sources:
            self.shares({source.name: 1 for source in sources})
        if self.curriculum is not None and (field := self.curriculum.removeprefix("-")) != "length":
            from pipelines.texts.columns import numbers

            for source in sources:
                if source.rows is not None:
                    numbers(source.rows, field, "curriculum")

    def shares(self, totals: dict[str, int]) -> dict[str, float]:
        """How much to take of each source, in units.

        Args:
            totals: source -> size, in units.

        Raises:
            UserError: weights or epochs name no source, or leave one out.
        """
        caps = self.epochs if isinstance(self.epochs, dict) else dict.fromkeys(totals, self.epochs)
        for field, settings in (("weights", self.weights), ("epochs", caps), ("caps", self.caps)):
            for label, value in (settings or {}).items():
                if label not in totals:
                    raise UserError(
                        f"`{field}` names `{label}`, which is no input of this stage.{nearest(label, totals)} "
                        f"Inputs: {', '.join(totals)}."
                    )
                if not value >= 0:
                    raise UserError(f"`{field}.{label}` should be 0 or more, found {value}.")
        room = {label: total * caps.get(label, 1.0) for label, total in totals.items()}
        room = {label: min(most, self.caps.get(label, most)) for label, most in room.items()}
        if self.weights is not None:
            if missing := [label for label in totals if label not in self.weights]:
                raise UserError(f"`weights` leaves out {', '.join(missing)}; give 0 to take nothing of it.")
            weights = self.weights
        elif self.temperature is not None:
            weights = {label: total ** (1 / self.temperature) for label, total in totals.items()}
        elif self.size is not None:
            weights = room
        else:
            return room
        whole = sum(weights.values())
        if not whole:
            raise UserError("`weights` are all 0: nothing to mix.")
        weights = {label: weight / whole for label, weight in weights.items()}
        if self.size is None:
            scale = min(room[label] / weight for label, weight in weights.items() if weight)
        else:
            scale = float(self.size)
        return {label: min(room[label], weight * scale) for label, weight in weights.items()}
