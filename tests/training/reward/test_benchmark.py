"""The reward-model benchmark: its scores by hand, in both formats."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from engine.store.artifact import Artifact
from engine.store.store import Store
from generators.text.learning_template import learning
from tests.training.tiny_chat import assistant, one_thread, reward_model, user
from training.models.answers import encode
from training.reward.benchmark import BenchmarkItem, line, load, picks, ties
from training.reward.benchmark_stage import RewardBench
from training.reward.model import RewardModel

__all__ = ["one_thread"]  # applies to every test here


def item(name: str, subset: str, correct: int = 1, wrong: int = 1) -> BenchmarkItem:
    return BenchmarkItem(name, subset, [{"role": "user", "content": "?"}], ["r"] * correct, ["w"] * wrong)


def test_the_best_of_four_shares_its_credit_where_scores_are_equal() -> None:
    assert picks([2.0, 1.0, 0.0, 0.0], 1) == 1.0
    assert picks([1.0, 1.0, 0.0, 1.0], 1) == pytest.approx(1 / 3)
    assert picks([0.0, 1.0, 0.0, 0.0], 1) == 0.0
    assert picks([3.0, 3.0, 1.0], 2) == 1.0


def test_sections_weigh_pairs_and_mathematics_as_much_as_code() -> None:
    items = [
        *(item(f"a{i}", "alpacaeval-easy") for i in range(3)), item("b", "mt-bench-easy"),
        *(item(f"m{i}", "math-prm") for i in range(2)), *(item(f"p{i}", "hep-python") for i in range(4)),
    ]  # fmt: skip
    good, bad = [1.0, 0.0], [0.0, 1.0]
    scores = [good, good, bad, bad, bad, bad, good, good, good, good]
    found = line(items, scores, 0)
    assert found["chat"] == pytest.approx(2 / 4) and found["reasoning"] == pytest.approx((4 * 0 + 4 * 1) / 8)
    assert found["score"] == pytest.approx(0.5) and found["accuracy"] == pytest.approx(6 / 10, abs=1e-6)
    assert "safety" not in found and found["n"] == 10


def test_ties_by_hand() -> None:
    items = [
        item("ref:1", "Ties", 1, 2),
        item("tied:1", "Ties", 3, 2),
        item("ref:2", "Ties", 1, 1),
        item("tied:2", "Ties", 2, 1),
    ]
    scores = [[3.0, 1.0, 0.0], [5.0, 4.5, 4.0, 2.0, 1.0], [0.0, 1.0], [4.0, 1.0, 0.5]]
    # 1: both right; spread 1, gap 2, the reference's gap 2. 2: only the tied one right; spread 3, gap 0.5, reference's -1
    accuracies = 0.3 * (1 / 2) + 0.3 * 1.0
    margins = 0.2 * (1 / 2) + 0.2 * (1 / 2)
    more = 0.01 * (math.tanh(2 / 1 - 1) + math.tanh(-1 / 3 - 1)) / 2
    assert ties(items, scores) == pytest.approx(accuracies + margins + more)
    found = line([*items, item("x", "Math", 1, 3)], [*scores, [1.0, 0.0, 0.0, 1.0]], 0)
    assert found["ties"] == pytest.approx(accuracies + margins + more, abs=1e-6) and found["math"] == 0.5
    assert found["accuracy"] == 0.5  # of what is not Ties
    with pytest.raises(UserError, match="expected an id such as `ref:12`"):
        ties([item("12", "Ties")], [[1.0, 0.0]])


def test_a_file_in_either_format_is_scored_row_by_row(
    tmp_path: Path, store: Store, build: Callable[..., Artifact]
) -> None:
    rows: list[dict[str, Any]] = [
        {"id": 1, "prompt": "what colour ?", "chosen": "red", "rejected": "no", "subset": "donotanswer"},
        {
            "id": 2,
            "prompt": user("what ?"),
            "chosen": assistant("blue"),
            "rejected": assistant("cat"),
            "subset": "donotanswer",
        },
        {"id": 3, "prompt": "the cat", "chosen": ["yes"], "rejected": ["dog", "one", "two"], "subset": "donotanswer"},
    ]
    (tmp_path / "bench.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    reward = reward_model(store, tmp_path / "r", 1)
    made = build(RewardBench, {"rewards": {"mine": reward}}, file="bench.jsonl", base=str(tmp_path))
    model = RewardModel.load(reward.location)

    def score(prompt: str, text: str) -> float:
        return model.score([encode(learning(model.tokenizer), user(prompt), assistant(text))]).item()

    expected = [
        score("what colour ?", "red") > score("what colour ?", "no"),
        score("what ?", "blue") > score("what ?", "cat"),
        score("the cat", "yes") > max(score("the cat", text) for text in ("dog", "one", "two")),
    ]
    table = made.manifest["summary"]["table"]
    assert table["mine"]["safety"] == pytest.approx(sum(expected) / 3, abs=1e-6)
    # red over no, blue over cat: longer; yes and dog are both the longest
    assert table["(the longer answer)"]["accuracy"] == pytest.approx((1 + 1 + 1 / 4) / 3, abs=1e-6)
    assert len(made.to_polars()) == 8


def test_bad_lines_are_told_by_number(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    for text, message in [
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt"', r"bad.jsonl:2: this line is no JSON"),
        ('{"prompt": "a", "chosen": "b", "rejected": ""}', r"row 1: `rejected` is missing or empty"),
        ("[1, 2]", r"row 1: `prompt` is missing"),
        ("\n", "holds no rows"),
    ]:
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            load(file)
    with pytest.raises(UserError, match="can't be read: No such file"):
        load(tmp_path / "none.parquet")
    (tmp_path / "x.parquet").write_bytes(b"PAR0")
    with pytest.raises(UserError, match="can't be read"):
        load(tmp_path / "x.parquet")


def test_the_recipes_of_the_page_on_alignment_are_valid() -> None:
    import re

    import yaml

    from engine.stage.stage import load as stage_of

    page = (Path(__file__).parents[3] / "docs" / "alignment.md").read_text()
    seen: set[str] = set()
    for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL):
        for name, body in yaml.safe_load(block).items():
            if isinstance(body, dict) and "kind" in body:
                fields = {key: value for key, value in body.items() if key not in ("kind", "from")}
                kind = stage_of(body["kind"])
                kind.model_validate(fields)
                assert set(body["from"]) <= set(kind.takes), name
                seen.add(body["kind"])
    assert {"reward", "reward_bench", "evaluate"} <= seen
