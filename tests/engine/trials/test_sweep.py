"""A sweep: what is shared is made once, killed it goes on, and the table holds what was planted."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from engine.plan.recipe import load_recipe
from engine.store.store import Store
from engine.trials import comparison_text
from engine.trials.comparison import compare
from engine.trials.sweep import sweep
from engine.trials.sweep_text import draw, lines
from engine.trials.trial_settings import parse_over, trials
from tests.engine.running import Ledger, slow_recipe, start, until

MEASURED = """\
name: measured
seed: 5
stages:
  lines: {kind: toy_read, path: lines.txt}
  model: {kind: toy_train, from: lines, steps: 3}
  judged: {kind: toy_measure, from: {documents: lines, model: model}}
"""


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    (tmp_path / "lines.txt").write_text("\n".join(f"line {i}" for i in range(40)))
    file = tmp_path / "measured.yaml"
    file.write_text(MEASURED)
    return file


def test_two_values_with_three_seeds_share_what_comes_before(measured: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    found = sweep(measured, [parse_over("model.steps=2,4", drawn=False)], seeds=3, store=store)
    assert [trial.name for trial in found.trials] == [
        f"measured,model.steps={steps},seed={seed}" for steps in (2, 4) for seed in (5, 6, 7)
    ]
    # `lines` once, `model` and `judged` for each of six.
    assert (found.made, found.shared, found.failed) == (13, 1, {})
    assert len([name for name in Store(store).folders() if name.startswith("toy_read")]) == 1
    first, second = found.lines["judged", "toy", "quality"]
    assert (first.setting, second.setting) == ("model.steps=2", "model.steps=4")
    # `toy_measure`: steps / 10, a part of each prompt's and a part of each seed's own.
    assert first.mean.low <= 0.2 <= first.mean.high and second.mean.low <= 0.4 <= second.mean.high
    assert second.difference and second.difference.low <= 0.2 <= second.difference.high and second.beyond_noise
    assert second.difference.high - second.difference.low < second.mean.high - second.mean.low  # paired
    assert len(set(first.seeds)) == 3
    told = "\n".join(lines(found))
    assert "measured: 2 settings, 3 seeds each; 13 artifacts, 1 of them shared." in told and "beyond noise" in told
    # What is told of a model that is the same in all trials moves with the one beside it, and says nothing of it.
    assert ("judged", "toy", "share") in found.lines
    assert not [measure for measure in found.lines if measure[1] == "plain"]
    held = compare(Store(store), found.trials[0].name, found.trials[3].name)
    by_model = {one.model: one for one in held.measured if one.metric == "share"}
    assert by_model["toy"].difference and by_model["toy"].difference.beyond_noise
    plain = by_model["plain"]
    assert plain.same_answers and plain.difference is None and plain.first != plain.second
    assert "moved with others" in "\n".join(comparison_text.lines(held))
    draw(found, tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").read_text().startswith("<svg")
    # A plain run is one of the trials: its artifacts are there.
    again = sweep(measured, [parse_over("model.steps=2,4", drawn=False)], seeds=3, store=store)
    assert {k: [x.mean for x in v] for k, v in again.lines.items()} == {
        k: [x.mean for x in v] for k, v in found.lines.items()
    }


def test_killed_it_goes_on(tmp_path: Path) -> None:
    slow_recipe(tmp_path, pause=0.05)
    ledger = Ledger(tmp_path / "ledger")
    arguments = ["sweep", "slow.yaml", "--over", "loud.times=1,2", "--json"]
    run = start(tmp_path, *arguments)
    until(lambda: len(ledger.parts) > 6)  # in the second trial
    run.send_signal(signal.SIGKILL)
    run.wait()
    before = len(ledger.parts)
    again = start(tmp_path, *arguments)
    _, said = again.communicate()
    assert again.returncode == 0, said
    assert len(ledger.parts) - before < 12 - 6 + 1  # what was committed was not made again
    store = Store(str(tmp_path / "store"))
    assert store.runs() == ["slow,loud.times=1", "slow,loud.times=2"]
    texts = [store.find(f"{run}/loud").to_table(["text"])["text"][0].as_py() for run in store.runs()]
    assert texts == ["LINE 0!", "LINE 0!!"]


def test_one_that_fails_is_told_and_the_others_come_to_their_end(measured: Path, tmp_path: Path) -> None:
    text = measured.read_text() + "  crash: {kind: toy_crash, from: lines, how: exception}\n"
    measured.write_text(text)
    found = sweep(measured, [parse_over("crash.how=exception,empty", drawn=False)], store=str(tmp_path / "s"))
    assert set(found.failed) == {"measured,crash.how=exception", "measured,crash.how=empty"}
    assert "did not come to its end: stage `crash`" in "\n".join(lines(found))


@pytest.mark.parametrize(
    ("over", "drawn", "told"),
    [
        (["modle.steps=2,3"], None, "Did you mean `model`"),
        (["model.stesp=2,3"], None, "Did you mean `steps`"),
        (["model.steps=2,x"], None, "valid integer"),
        (["model.steps"], None, "expected STAGE.FIELD=VALUE"),
        (["model.steps=2,2"], None, "stands there twice"),
        (["model.seed=1,2"], None, "`--seeds 3`"),
        (["model.steps=2..9"], None, "`--random 8`"),
        (["model.steps=9..2"], 3, "from the smaller"),
        (["lines.path=a,b"], None, "draws no random numbers"),
        ([], None, "draws no random"),
    ],
)
def test_what_can_not_be_tried_is_told_before_anything_runs(
    over: list[str], drawn: int | None, told: str, measured: Path, tmp_path: Path
) -> None:
    if not over:  # nothing to try, and one seed
        with pytest.raises(UserError, match="there is nothing to try"):
            sweep(measured, [], store=str(tmp_path / "s"))
        return
    with pytest.raises(UserError, match=told):
        sweep(
            measured,
            [parse_over(one, drawn is not None) for one in over],
            seeds=2,
            drawn=drawn,
            store=str(tmp_path / "s"),
        )
    assert not (tmp_path / "s" / "artifacts").exists()


def names(measured: Path, over: list[str], seeds: int = 1, drawn: int | None = None) -> list[Any]:
    return trials(load_recipe(measured), [parse_over(one, drawn is not None) for one in over], seeds, drawn)


def test_a_grid_and_what_is_drawn(measured: Path) -> None:
    grid = names(measured, ["model.steps=2,4", "model.pause=0,0.5"])
    assert [one.setting for one in grid] == [
        "model.steps=2, model.pause=0", "model.steps=2, model.pause=0.5", "model.steps=4, model.pause=0",
        "model.steps=4, model.pause=0.5",
    ]  # fmt: skip
    drawn = names(measured, ["model.steps=2..400", "model.pause=1e-6..1e-2"], drawn=40)
    assert [one.values for one in drawn] == [
        one.values for one in names(measured, ["model.steps=2..400", "model.pause=1e-6..1e-2"], drawn=40)
    ]
    steps, pauses = ([one.values[name] for one in drawn] for name in ("model.steps", "model.pause"))
    assert all(2 <= int(value) <= 400 for value in steps) and len(set(steps)) > 20
    # By its logarithm: a quarter of them in each of the four decades, give or take.
    assert all(4 <= sum(low <= float(value) < 10 * low for value in pauses) <= 18 for low in (1e-6, 1e-5, 1e-4, 1e-3))
    assert len(names(measured, ["model.steps=2,3,4"], drawn=10)) == 3  # no more than there are
    (listed,) = names(measured, ["model.steps=[1,2]"])
    assert listed.values == {"model.steps": "[1,2]"}
    seeds = names(measured, [], seeds=3)
    assert [one.overrides for one in seeds] == [[], ["seed=6"], ["seed=7"]]
