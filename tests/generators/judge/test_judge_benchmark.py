"""The benchmark of the judge, on a small file of the same form: its claims hold, and break when the stage is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.judge import data, measure
from generators.judge import model_judge


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    pairs = [(f"Say\n\nnumber {i}", model) for i in range(8) for model in ("one", "two", "three")]
    preference = 1 + random.random(len(pairs))
    preference[::5] = 1.5
    pl.DataFrame({
        "instruction": [i for i, _ in pairs], "model_1": ["base"] * len(pairs), "model_2": [m for _, m in pairs],
        "preference": preference,
    }).write_parquet(tmp_path / "preferences.parquet")  # fmt: skip
    rows = [(i, m, f"{m} on\n\n[Answer A]\n<two> {i}") for i, m in pairs] + [
        (f"Say\n\nnumber {i}", "base", "") for i in range(8)
    ]
    pl.DataFrame(rows, schema=["instruction", "model", "output"], orient="row").write_parquet(
        tmp_path / "outputs.parquet"
    )
    return tmp_path


def test_the_claims_hold(folder: Path) -> None:
    result = measure(folder, quick=False)
    assert [claim["id"] for claim in result["claims"] if not claim["holds"]] == []
    assert result["judgements"]["all"] == 24 and result["graded"]["requests"] == 48
    assert result["leaning"]["order_decided"] > 0


def test_a_judge_that_asks_one_order_only_is_caught(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_judge, "verdict", lambda first, second: {"A": 1.0, "B": 0.0}.get(first, 1.0))
    broken = [claim["id"] for claim in measure(folder, quick=False)["claims"] if not claim["holds"]]
    assert broken == ["judge.winner_rates_equal_the_file"]


def test_without_the_data_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_DATA", str(tmp_path))
    assert data() is None
