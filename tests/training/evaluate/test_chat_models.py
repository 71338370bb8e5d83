"""Models of several families side by side: the same prompts for all of them, and an end that every one of them knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from engine.stage.job import Job
from engine.store.store import Store
from tests.training.stock_models import stock
from tests.training.tiny_chat import user
from training.evaluate.shared_engine import SharedEngine
from training.evaluate.stage import Evaluate

SYSTEM = [{"role": "system", "content": "Be brief."}, *user("Capital of Peru?")]


def engine(store: Store, prompts: Any, models: dict[str, Any]) -> tuple[Job, SharedEngine]:
    job = Job(store, "evaluated", "Verdict", {"models": models, "prompts": {"p": prompts}}, 0)
    return job, SharedEngine(job, Evaluate(), models)


def test_a_prompt_that_one_model_can_not_be_shown_is_asked_of_none(store: Store, given: Any, tmp_path: Path) -> None:
    (gemma, its), (phi, tokens) = (stock(store, tmp_path / name, name) for name in ("gemma", "phi3"))
    rows = [{"id": "plain", "prompt": user("Capital of Peru?")}, {"id": "system", "prompt": SYSTEM}]
    job, shared = engine(store, given("Prompt", rows), {"gemma": gemma, "phi": phi})
    assert {name: [q.id for q in own] for name, own in shared.asked.items()} == {gemma.id: ["plain"], phi.id: ["plain"]}
    assert tokens.decode(shared.asked[phi.id][0].token_ids) == "<|user|>\nCapital of Peru?<|end|>\n<|assistant|>\n"
    (refused,) = job.writer.read_rejected(gemma.id).to_pylist()
    assert (refused["id"], refused["reason"]) == ("system", "template_refused")
    ends = {its.convert_tokens_to_ids("<end_of_turn>"), tokens.convert_tokens_to_ids("<|end|>")}
    assert ends <= set(shared.ends)


def test_models_without_a_prompt_in_common_are_not_compared(store: Store, given: Any, tmp_path: Path) -> None:
    (gemma, _), (phi, _) = (stock(store, tmp_path / name, name) for name in ("gemma", "phi3"))
    rows = [{"id": "system", "prompt": SYSTEM}, {"id": "mark", "prompt": user("a <|end|> b")}]
    with pytest.raises(UserError, match="no prompt can be shown to all of the models"):
        engine(store, given("Prompt", rows), {"gemma": gemma, "phi": phi})[1].asked  # noqa: B018
