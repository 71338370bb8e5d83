"""A browser, the window over a store, and the store's files as Polars reads them: what the page shows is held against these."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from benchmarks.parts.claims import Claim, claim
from engine.store.store import Store
from tests.engine.view.ui.walk import Walk

Found = tuple[Any, bool]  # what was seen, and whether it is what the files say
RUN = "quickstart"


@dataclass
class Scene:
    """What checks look at.

    Attributes:
        link: with the token, as the command prints it.
        pictures: a folder for screenshots.
    """

    walk: Walk
    link: str
    store: Path
    recipe: Path
    pictures: Path | None = None
    _frames: dict[tuple[str, str], pl.DataFrame] = field(default_factory=lambda: {})

    @cached_property
    def artifacts(self) -> dict[str, str]:
        """Stage -> folder of its artifact."""
        record = Store(str(self.store)).run(RUN) or {}
        return {name: entry["artifact"] for name, entry in record["stages"].items()}

    @cached_property
    def stages(self) -> list[str]:
        """As the recipe's file has them, and the one that looks for what the evaluation asks in what models were trained on."""
        stated = list(yaml.safe_load(self.recipe.read_text())["stages"])
        return [*stated, *(name for name in self.artifacts if name == "results_contamination")]

    def folder(self, stage: str) -> Path:
        return self.store / "artifacts" / self.artifacts[stage]

    def manifest(self, stage: str) -> dict[str, Any]:
        return json.loads((self.folder(stage) / "manifest.json").read_text())

    def frame(self, stage: str, part: str = "data") -> pl.DataFrame:
        """All rows of a stage, file by file; `part` is `rejected` for those that did not make it."""
        if (stage, part) not in self._frames:
            files = sorted((self.folder(stage) / part).glob("*.parquet"))
            frames = [pl.read_parquet(file) for file in files]
            self._frames[stage, part] = pl.concat(frames, how="diagonal_relaxed") if frames else pl.DataFrame()
        return self._frames[stage, part]

    def sides(self, metric: str, column: str, models: tuple[str, str]) -> list[tuple[Any, Any]]:
        """What was measured of two models' answers to the same prompts, by prompt and sample, in the order of the prompts' ids."""
        rows = self.frame("results").filter(pl.col("metric") == metric).select("model", "subject", "sample", column)
        one, other = (rows.filter(pl.col("model") == model).drop("model") for model in models)
        both = one.join(other, on=["subject", "sample"], suffix="_other").sort("subject", "sample")
        return both.select(column, f"{column}_other").rows()

    def open(self, stage: str, rest: str = "") -> Walk:
        """The page of a stage's artifact, or what is below it."""
        self.walk.chrome.get(f"{self.walk.home}/artifact/{self.artifacts[stage]}{rest}")
        self.walk.there()
        return self.walk

    def lineage(self) -> str:
        """What a page's picture of where something comes from says."""
        self.walk.wait(lambda: self.walk.all("#lineage svg"))
        return self.walk.all("#lineage svg")[0].get_attribute("textContent")

    def picture(self, name: str) -> None:
        """Kept for docs/, where a folder for them was named."""
        if self.pictures:
            self.walk.chrome.save_screenshot(str(self.pictures / f"{name}.png"))


@dataclass(frozen=True)
class Check:
    """One thing that a person sees in the browser, held against the files."""

    name: str
    bar: str
    look: Callable[[Scene], Found]

    def claim(self, scene: Scene) -> Claim:
        """What was seen. A page that does not come, or not in time, is a claim that does not hold."""
        try:
            seen, holds = self.look(scene)
        except Exception as error:  # whatever the browser says; the other checks are still to come
            seen, holds = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", False
        return claim(f"window.{self.name}", seen, self.bar, holds)


def checks(module: Mapping[str, Any]) -> Iterator[Check]:
    """A module's functions that give what was found, in their order; the first line of the docstring is the bar."""
    for name, look in module.items():
        if getattr(look, "__annotations__", {}).get("return") == "Found" and not name.startswith("_") and name != "of":
            yield Check(name, (look.__doc__ or "").strip().splitlines()[0].rstrip("."), look)


def short(ids: pl.Series | list[str]) -> list[str]:
    """Ids as a page shows them: the first 50, eight digits of each."""
    return [str(one)[:8] for one in list(ids)[:50]]


def of(parts: list[tuple[Any, Any]]) -> Found:
    """How many of these pairs of what was seen and what is in the files are the same."""
    same = sum(seen == wanted for seen, wanted in parts)
    return f"{same} of {len(parts)}", same == len(parts) > 0


def number(text: str) -> int:
    return int(re.sub(r"\D", "", text) or 0)
