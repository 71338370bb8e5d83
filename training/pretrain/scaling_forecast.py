"""What a larger `pretrain` would give and take, by the runs of a sweep over its size (the law: `scaling_law.py`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from engine.errors import UserError
from engine.statistics.bootstrap import Interval
from engine.store import run_records
from engine.store.artifact import Artifact
from engine.store.store import Store
from engine.view.run_history import run_named
from engine.view.times import duration
from training.hardware import flops, memory
from training.pretrain.scaling_law import ScalingLaw, fit
from training.pretrain.size import Size

ALIKE = 1.5  # tokens a parameter of the runs may differ by such a factor
UNIT = "bits a byte"


@dataclass(frozen=True)
class PretrainedSize:
    """A finished `pretrain`, or one that is foretold.

    Attributes:
        name: of its run, or the size that was asked for.
        compute: FLOPs of all its steps.
        loss: bits a byte of held-out text.
        seconds: wall time on the machine of the runs, if that is known.
    """

    name: str
    parameters: int
    tokens: int
    compute: float
    loss: float
    seconds: float | None


@dataclass(frozen=True)
class Foretold:
    """A size that nobody has trained, as the law has it."""

    size: PretrainedSize
    interval: Interval


@dataclass(frozen=True)
class ScalingForecast:
    """The runs, the law of all of them, and what it says of other sizes."""

    runs: list[PretrainedSize]
    law: ScalingLaw
    foretold: list[Foretold]


def forecast(store: Store, run: str, sizes: Sequence[str]) -> ScalingForecast:
    """The law of all runs of a sweep (`RUN,...`; or RUN alone with several `pretrain` stages), and what it says of these sizes.

    Args:
        sizes: a depth each, or what `pretrain` takes as `size`, as YAML.

    Raises:
        UserError: there is no such run; fewer than four sizes; they read different text, or very different amounts of it.
    """
    found = _pretrained(store, run)
    runs = sorted((_run(name, artifact) for name, artifact in found), key=lambda one: one.compute)
    _check_alike(found, runs)
    law = fit([one.compute for one in runs], [one.loss for one in runs])
    largest = max(found, key=lambda pair: pair[1].manifest["summary"]["parameters"])[1]
    return ScalingForecast(runs, law, [_foretold(law, runs, largest, size) for size in sizes])


def _pretrained(store: Store, run: str) -> list[tuple[str, Artifact]]:
    names = [name for name in run_records.names(store) if name.startswith(f"{run},")] or [run_named(store, run)]
    found: dict[str, tuple[str, Artifact]] = {}
    for name in names:
        made = run_records.made(run_records.read(store, name) or {})
        for stage, folder in made.items():
            artifact = store.get(folder)
            if artifact is None or artifact.manifest["stage"]["kind"] != "pretrain":
                continue
            if not artifact.manifest["inputs"].get("model") and "bits_per_byte" in artifact.manifest["summary"]:
                found.setdefault(artifact.id, (name if name != run else f"{run}/{stage}", artifact))
    if not found:
        raise UserError(
            f"run `{run}` has no finished `pretrain` from random weights that was measured on held-out text. Hold some out "
            "(`validation` of `tokenize`), and try sizes: `flywheel sweep RECIPE --over base.size.depth=1,2,3,4`."
        )
    return list(found.values())


def _run(name: str, artifact: Artifact) -> PretrainedSize:
    summary, config = artifact.manifest["summary"], artifact.read_json("config.json")
    shape = memory.shape_of(config)
    assert shape is not None  # `pretrain` makes no other
    compute = flops.by_token(shape, config["max_position_embeddings"]) * summary["tokens"]
    seconds = artifact.manifest["timings"].get("wall_s")
    return PretrainedSize(name, summary["parameters"], summary["tokens"], compute, summary["bits_per_byte"], seconds)


def _check_alike(found: list[tuple[str, Artifact]], runs: list[PretrainedSize]) -> None:
    read = {artifact.manifest["inputs"]["tokens"][0]["digest"]: name for name, artifact in found}
    if len(read) > 1:
        one, other, *_ = read.values()
        raise UserError(f"{one} and {other} read different shards: what they lost can't be compared.")
    shares = [one.tokens / one.parameters for one in runs]
    if max(shares) > ALIKE * min(shares):
        raise UserError(
            f"the runs read {min(shares):.3g} to {max(shares):.3g} tokens a parameter. The law is of sizes that are trained alike: leave out "
            "`steps` and `epochs`, so that each reads `tokens_per_parameter`."
        )


def _foretold(law: ScalingLaw, runs: list[PretrainedSize], largest: Artifact, size: str) -> Foretold:
    config = largest.read_json("config.json")
    stated = {**config, **_size(size).settings(config["vocab_size"])}
    shape = memory.shape_of(stated)
    assert shape is not None
    count = memory.parameters(shape)
    tokens = round(count * math.exp(sum(math.log(one.tokens / one.parameters) for one in runs) / len(runs)))
    compute = flops.by_token(shape, config["max_position_embeddings"]) * tokens
    interval, last = law.foretold(compute), runs[-1]  # whose FLOPs took the time that the next ones will
    seconds = last.seconds and compute * last.seconds / last.compute
    return Foretold(PretrainedSize(size, count, tokens, compute, interval.value, seconds), interval)


def _size(text: str) -> Size:
    try:
        told: Any = yaml.safe_load(text)
        return Size.model_validate({"depth": told} if isinstance(told, int) else told)
    except (yaml.YAMLError, ValidationError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "it is no YAML"
        raise UserError(
            f"`--size {text}`: {first}. Expected a depth (`--size 6`), or fields of `size` (`--size '{{depth: 4, width: 192}}'`)."
        ) from None


def lines(found: ScalingForecast) -> Iterator[str]:
    """The runs beside the law, and what is foretold, as text."""
    law = found.law
    shown = [one.name for one in found.runs] + [_called(one.size.name) for one in found.foretold]
    width = max(map(len, shown))
    yield f"{'':{width}}  parameters      tokens     FLOPs      time  {UNIT}  the law's"
    for one in found.runs:
        yield f"{_line(one, width)}  {one.loss:>11.4f}  {law(one.compute):>9.4f}"
    yield ""
    yield (
        f"L(C) = {law.floor:.4g} + {law.excess:.4g} (C / {law.reference:.3g})^-{law.exponent:.4g} {UNIT}; "
        f"a run lies {law.deviation:.2%} beside it."
    )
    for one in found.foretold:
        told = one.interval
        yield f"{_line(one.size, width)}  {told.value:>11.4f}  ({told.low:.4f} to {told.high:.4f} in 95 of 100)"


def _called(size: str) -> str:
    return f"depth {size}" if size.isdigit() else size


def _line(one: PretrainedSize, width: int) -> str:
    return f"{_called(one.name):{width}}  {one.parameters:>10,}  {one.tokens:>10,}  {one.compute:>8.2e}  {duration(one.seconds):>8}"


def as_json(found: ScalingForecast) -> dict[str, Any]:
    """The same for machines."""
    return {
        "unit": UNIT,
        "runs": [asdict(one) for one in found.runs],
        "law": asdict(found.law),
        "foretold": [asdict(one) for one in found.foretold],
    }
