"""What a sweep tries: a grid of values, or some drawn from it, each with several seeds; each a run with a name that tells."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from dataclasses import dataclass
from typing import Any

from engine.errors import UserError, nearest
from engine.plan.recipe import Recipe, setting
from engine.seeds import generator
from engine.store.run_records import LONGEST, misnamed

RANGE = re.compile(r"([-+.\deE]+)\.\.([-+.\deE]+)")
MOST = 1000  # runs
DECADE = 10  # a range as wide as that is drawn from by its logarithm


@dataclass(frozen=True)
class Over:
    """A field and what to try there: values as the recipe would have them, or the ends of a range, of whole numbers or of any."""

    path: str
    values: list[str]
    ends: tuple[float, float] | None = None
    whole: bool = False


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: of the run.
        values: field -> value; the same for all seeds of a setting.
        overrides: as `--set` takes them, the seed among them.
    """

    name: str
    values: dict[str, str]
    seed: int
    overrides: list[str]

    @property
    def setting(self) -> str:
        """The values, in words."""
        return ", ".join(f"{path}={value}" for path, value in self.values.items()) or "as the recipe has it"


def parse_over(text: str, drawn: bool) -> Over:
    """`STAGE.FIELD=VALUE,VALUE,...`, or `STAGE.FIELD=LOW..HIGH` where values are drawn.

    Raises:
        UserError: it is neither.
    """
    path, equals, told = text.partition("=")
    if not equals or not told or "." not in path:
        raise UserError(
            f"`--over {text}`: expected STAGE.FIELD=VALUE,VALUE,... or STAGE.FIELD=LOW..HIGH with `--random`."
        )
    if path.rpartition(".")[2] == "seed":
        raise UserError(f"`--over {text}`: seeds are not tried, but repeated: `--seeds 3`.")
    if found := RANGE.fullmatch(told):
        low, high = (_number(text, one) for one in found.groups())
        if not drawn:
            raise UserError(f"`--over {text}`: how many values of the range are to be drawn? `--random 8` says so.")
        if low >= high:
            raise UserError(f"`--over {text}`: a range goes from the smaller to the larger number.")
        return Over(path, [], (low, high), all(one.isdigit() for one in found.groups()))
    values = _split(told)
    if len(set(values)) < len(values):
        raise UserError(f"`--over {text}`: a value stands there twice.")
    return Over(path, values)


def _number(text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"`--over {text}`: `{value}` is no number.")
    return number


def _split(told: str) -> list[str]:
    """At commas, but for those inside of brackets, braces and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in told:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def trials(recipe: Recipe, over: list[Over], seeds: int, drawn: int | None) -> list[Trial]:
    """All runs of a sweep: the settings in order, each with its seeds. The first seed is the one that the recipe has, so that a run of the
    recipe alone is part of the sweep.

    Args:
        recipe: without any of the values.
        seeds: how many; of the stages whose fields are tried, so that what comes before is made once, and what comes after
            (an evaluation) asks the same in each. Of the whole recipe where nothing is tried.
        drawn: so many settings, drawn with the recipe's seed; all combinations if None.

    Raises:
        UserError: a stage is not in the recipe, or draws no random numbers; there is nothing to try.
    """
    stages = list(dict.fromkeys(one.path.partition(".")[0] for one in over))
    for stage in stages:
        if stage not in recipe.steps:
            raise UserError(f"`--over`: {recipe.file} has no stage `{stage}`.{nearest(stage, recipe.steps)}")
        step = recipe.steps[stage]
        if seeds > 1 and not type(step.config).random and len(stages) == 1:
            raise UserError(
                f"`--seeds`: stage `{stage}` ({step.kind}) draws no random numbers, so that one seed tells all."
            )
    if not over and seeds < 2:
        raise UserError("there is nothing to try: `--over STAGE.FIELD=VALUE,VALUE`, or `--seeds 3`.")
    settings = _grid(over) if drawn is None else _drawn(over, drawn, recipe.seed)
    if len(settings) * seeds > MOST:
        raise UserError(
            f"that would be {len(settings) * seeds:,} runs; a sweep has at most {MOST:,}. `--random N` draws some."
        )
    told = [_trial(recipe, stages, values, number, seeds) for values in settings for number in range(seeds)]
    return told


def _grid(over: list[Over]) -> list[dict[str, str]]:
    return [
        dict(zip([one.path for one in over], values, strict=True))
        for values in itertools.product(*(one.values for one in over))
    ]


def _drawn(over: list[Over], count: int, seed: int) -> list[dict[str, str]]:
    """Settings drawn, no two the same (Bergstra and Bengio 2012: where few fields matter, that finds more than a grid)."""
    random = generator("sweep", seed, *(f"{one.path}={one.values}{one.ends}" for one in over))
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for _ in range(100 * count):
        values = {one.path: _draw(one, random) for one in over}
        found.setdefault(tuple(values.values()), values)
        if len(found) == count:
            break
    return list(found.values())


def _draw(one: Over, random: Any) -> str:
    if one.ends is None:
        return one.values[int(random.integers(len(one.values)))]
    low, high = one.ends
    wide = low > 0 and high / low >= DECADE
    value = math.exp(random.uniform(math.log(low), math.log(high))) if wide else random.uniform(low, high)
    return str(round(value)) if one.whole else f"{value:.2e}" if wide else f"{value:.3g}"


def _trial(recipe: Recipe, stages: list[str], values: dict[str, str], number: int, seeds: int) -> Trial:
    own = [seed for stage in stages if (seed := recipe.steps[stage].config.seed) is not None]
    seed = (own[0] if own else recipe.seed) + number
    overrides = [f"{path}={value}" for path, value in values.items()]
    for one in overrides:
        setting(one, one.partition("=")[2])  # it is YAML
    if number:
        random = [stage for stage in stages if type(recipe.steps[stage].config).random]
        overrides += [f"{stage}.seed={seed}" for stage in random] if stages else [f"seed={seed}"]
    told = [f"{path}={value}" for path, value in values.items()] + ([f"seed={seed}"] if seeds > 1 else [])
    return Trial(_name(recipe.name, told), values, seed, overrides)


def _name(run: str, told: list[str]) -> str:
    """`RUN,STAGE.FIELD=VALUE,seed=N`; where that is no name, or too long for one, a digest of it stands in its place."""
    name = ",".join([run, *told])
    if misnamed(name) or len(name.encode()) > LONGEST:
        return f"{run},{hashlib.sha256(','.join(told).encode()).hexdigest()[:12]}"
    return name
