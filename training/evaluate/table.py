"""The table of an evaluation, from its Verdict rows: one line a model, every estimate with its 95 % interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from engine.statistics import bootstrap
from engine.statistics.bootstrap import Interval
from training.evaluate import length_control, strengths, win_rate
from training.evaluate.metrics import MEASURED
from training.rl import kl

Line = dict[str, float | int | None]


def tabulate(
    rows: pl.DataFrame,
    models: Sequence[str],
    reference: str | None,
    checks: Sequence[str],
    seed: int,
    best_of: Mapping[str, int] | None = None,
) -> dict[str, Line]:
    """Model -> metrics: the mean over prompts of each prompt's mean over answers.

    What was not measured of a model is null. The reference wins against itself half of the time by definition.

    Args:
        best_of: lines that are the best of so many answers; they get the bound on how far that moves a model.
    """
    utilities = {model: by_subject(rows, model, "utility") for model in models}
    lengths = {model: by_subject(rows, model, "length") for model in models}
    controlled = length_controlled(utilities, lengths, reference, seed)
    same = [model for model in models if utilities[model] and set(utilities[model]) == set(utilities[models[0]])]
    scale: dict[str, Interval] = {}
    if len(same) > 1:
        scale = dict(zip(same, strengths.intervals([utilities[model] for model in same], seed), strict=True))
    table: dict[str, Line] = {}
    for model in models:
        own = rows.filter(model=model)
        line: Line = {}
        for check in checks:
            measured = own.filter(metric=check)
            line |= spread(
                check, bootstrap.mean(measured["value"].to_numpy(), measured["subject"].to_list(), seed, check)
            )
        if reference is not None and utilities[reference] and utilities[model]:
            itself = Interval(0.5, 0.5, 0.5)
            against = win_rate.against(utilities[model], utilities[reference], seed)
            line |= spread("gold_win_rate", itself if model == reference else against)
        else:
            line |= {"gold_win_rate": None, "gold_win_rate_low": None, "gold_win_rate_high": None}
        if controlled:
            line |= spread("length_controlled_win_rate", controlled[model])
        if scale:
            line |= spread("bradley_terry", scale.get(model))
        for metric in MEASURED:
            means = [float(np.mean(values)) for values in by_subject(rows, model, metric).values()]
            line[metric] = float(np.mean(means)) if means else None
        if best_of:
            line["kl_bound"] = kl.best_of_n(best_of[model]) if model in best_of else None
        line |= text_metrics(own, seed)
        line["n"] = len(own.filter(metric="sample"))
        table[model] = {name: round(value, 6) if isinstance(value, float) else value for name, value in line.items()}
    return table


def length_controlled(
    utilities: Mapping[str, Mapping[str, Sequence[float]]],
    lengths: Mapping[str, Mapping[str, Sequence[float]]],
    reference: str | None,
    seed: int,
) -> dict[str, Interval]:
    """Length-controlled win rates against the reference; empty where there is nothing to control."""
    if reference is None or not utilities[reference]:
        return {}
    prompts = sorted(utilities[reference])
    others = [model for model, own in utilities.items() if model != reference and set(own) == set(prompts)]
    if not others:
        return {}
    rates = {model: win_rate.by_prompt(utilities[model], utilities[reference]) for model in others}
    controlled = length_control.fit(
        [[rates[model][prompt] for prompt in prompts] for model in others],
        [[float(np.mean(lengths[model][prompt])) for prompt in prompts] for model in others],
        [float(np.mean(lengths[reference][prompt])) for prompt in prompts],
    )
    return {
        **dict.fromkeys(utilities, Interval(0.5, 0.5, 0.5)),
        **{model: controlled.interval(i, seed) for i, model in enumerate(others)},
    }


def text_metrics(own: pl.DataFrame, seed: int) -> Line:
    """Bits a byte and perplexity over all texts together, where a model read some; the interval is over texts."""
    read = {name: own.filter(metric=name).sort("subject")["value"].to_numpy() for name in ("nats", "bytes", "tokens")}
    if not len(read["nats"]):
        return {}

    def bits(picked: np.ndarray) -> float:
        return float(read["nats"][picked].sum() / (np.log(2) * read["bytes"][picked].sum()))

    texts = own.filter(metric="nats").sort("subject")["subject"].to_list()
    perplexity = float(np.exp(read["nats"].sum() / max(read["tokens"].sum(), 1)))
    return {**spread("bits_per_byte", bootstrap.statistic(texts, bits, seed)), "perplexity": perplexity}


def spread(name: str, interval: Interval | None) -> Line:
    """An estimate and the ends of its interval, as columns."""
    if interval is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def by_subject(rows: pl.DataFrame, model: str, metric: str) -> dict[str, list[float]]:
    """Prompt -> the values of a model's answers to it, in the order of the samples."""
    picked = rows.filter(model=model, metric=metric).sort("subject", "sample")
    values: dict[str, list[float]] = {}
    for subject, value in picked.select("subject", "value").iter_rows():
        values.setdefault(subject, []).append(value)
    return values


def side_by_side(
    rows: pl.DataFrame, prompts: Sequence[tuple[str, Any, str | None]], models: Sequence[str]
) -> list[dict[str, Any]]:
    """The first answers of every model to some prompts, given as (id, messages, reference)."""
    first = rows.filter(metric="sample", sample=0)
    texts = {(s, m): t for s, m, t in first.select("subject", "model", "text").iter_rows()}
    return [
        {
            "prompt": messages,
            "reference": reference,
            "answers": {model: texts[name, model] for model in models if (name, model) in texts},
        }
        for name, messages, reference in prompts
    ]


def as_text(table: Mapping[str, Line]) -> str:
    """The table on a few lines, without intervals: for a message."""
    names = list(
        dict.fromkeys(name for line in table.values() for name in line if not name.endswith(("_low", "_high")))
    )
    cells = [["", *names]] + [[model, *(_cell(line.get(name)) for name in names)] for model, line in table.items()]
    wide = [max(len(row[i]) for row in cells) for i in range(len(names) + 1)]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)).rstrip() for row in cells
    )


def _cell(value: float | int | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
