"""What is told of a sweep's runs is what they are, and what is foretold of a size is what such a model would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from engine.errors import UserError
from engine.store import run_records
from engine.store.artifact import Artifact
from engine.store.store import Store
from tests.training.tiny import PRETRAIN, blocks
from tests.training.tiny_chat import one_thread
from training.pretrain.llama import decoder_config, initial_model
from training.pretrain.scaling_command import app
from training.pretrain.scaling_forecast import as_json, forecast, lines
from training.pretrain.scaling_law import fit
from training.pretrain.size import Size
from training.pretrain.stage import Pretrain

__all__ = ["one_thread"]  # applies to every test here

WIDTHS = (16, 24, 32, 40)


def size(width: int) -> dict[str, int]:
    return {"depth": 2, "width": width, "heads": 2, "inner": 2 * width}


def remember(store: Store, run: str, artifact: Artifact) -> None:
    entry = {"artifact": artifact.id, "kind": "pretrain"}
    run_records.update(store, run, lambda record: {**record, "stages": {**record["stages"], "base": entry}})


@pytest.fixture
def swept(store: Store, build: Any) -> dict[int, Artifact]:
    """Width -> what a sweep over widths has made; each read a token for twenty parameters."""
    plain = {name: value for name, value in PRETRAIN.items() if name not in ("steps", "size", "lr")}
    made: dict[int, Artifact] = {}
    for width in WIDTHS:
        made[width] = build(Pretrain, {"tokens": blocks(store)}, **plain, size=size(width), tokens_per_parameter=0.05)
        remember(store, f"sizes,base.size.width={width}", made[width])
    return made


def test_a_size_is_foretold_by_the_law_of_those_that_were_tried(store: Store, swept: dict[int, Artifact]) -> None:
    found = forecast(store, "sizes", ["{depth: 3, width: 64, heads: 2}"])
    summaries = [swept[width].manifest["summary"] for width in WIDTHS]
    assert [(one.parameters, one.tokens, one.loss) for one in found.runs] == [
        (s["parameters"], s["tokens"], s["bits_per_byte"]) for s in summaries
    ]
    assert found.runs[0].name == "sizes,base.size.width=16"
    # By hand: two layers of 4 w^2 + 3 w (2 w) and a head of 300 rows, six FLOPs a weight; 6 T w a layer for attention.
    w, length, vocabulary = 16, 32, 300
    by_token = 6 * (2 * 10 * w * w + vocabulary * w) + 2 * 6 * length * w
    assert found.runs[0].compute == by_token * summaries[0]["tokens"]

    (told,) = found.foretold
    shape = decoder_config(Size(depth=3, width=64, heads=2), "llama", vocabulary, length, 0, 0)
    assert told.size.parameters == sum(p.numel() for p in initial_model(shape, 0, torch.float32).parameters())
    assert told.size.tokens / told.size.parameters == pytest.approx(0.05, rel=0.1)
    law = fit([one.compute for one in found.runs], [one.loss for one in found.runs])
    assert (
        told.interval.value == pytest.approx(law(told.size.compute))
        and told.interval.low < told.interval.value < told.interval.high
    )
    last = found.runs[-1]
    assert told.size.seconds == pytest.approx((last.seconds or 0) * told.size.compute / last.compute)
    said = CliRunner().invoke(
        app, ["sizes", "--size", "3", "--size", "{depth: 3, width: 64, heads: 2}", "--store", store.url]
    )
    assert said.exit_code == 0 and "depth 3 " in said.output and f"({told.interval.low:.4f} to" in said.output
    text = "\n".join(lines(found))
    assert f"{told.interval.low:.4f} to {told.interval.high:.4f}" in text and "sizes,base.size.width=40" in text
    assert as_json(found)["foretold"][0]["interval"]["value"] == told.interval.value


def test_sizes_that_were_trained_otherwise_have_no_law(
    store: Store, build: Any, swept: dict[int, Artifact], tmp_path: Path
) -> None:
    assert CliRunner().invoke(app, ["size", "--store", store.url]).exit_code == 2
    with pytest.raises(UserError, match="no run `size` in the store"):
        forecast(store, "size", [])
    with pytest.raises(UserError, match=r"`--size 0`: .*Expected a depth"):
        forecast(store, "sizes", ["0"])
    short = build(Pretrain, {"tokens": blocks(store)}, **{**PRETRAIN, "steps": 2})
    remember(store, "sizes,base.steps=2", short)
    with pytest.raises(UserError, match=r"the runs read [\d.]+ to [\d.]+ tokens a parameter"):
        forecast(store, "sizes", [])
    other = build(Pretrain, {"tokens": blocks(store, blocks=30)}, **{**PRETRAIN, "steps": 2})
    remember(store, "sizes,base.steps=2", other)
    with pytest.raises(UserError, match="read different shards"):
        forecast(store, "sizes", [])
