"""A model of random weights gives valid JSON when it is guided; what is not valid is mended once or rejected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from engine.errors import UserError
from generators.backends import json_answers
from generators.backends.local_model import Local
from generators.backends.protocol import Answer, Failure, Sampling
from generators.backends.vllm.engine import VllmEngine
from generators.candidates.stage import Candidates
from generators.text.prompts import Message, load_tokenizer
from tests.generators.backends.nested_schema import SCHEMA

ASK: list[list[Message]] = [[{"role": "user", "content": f"Say {i}!"}] for i in range(60)]


def test_guided_answers_of_a_random_model_all_validate(wide: VllmEngine, tiny_wide: Path) -> None:
    backend = Local(wide, load_tokenizer(str(tiny_wide)))
    answers, repaired = json_answers.complete(backend, ASK, Sampling(max_tokens=200), list(range(60)), SCHEMA)
    assert not repaired
    for answer in answers:
        assert isinstance(answer, Answer) and answer.finish_reason == "stop"
        jsonschema.validate(json.loads(answer.text), SCHEMA)
    assert len({answer.text for answer in answers if isinstance(answer, Answer)}) > 50
    again, _ = json_answers.complete(backend, ASK, Sampling(max_tokens=200), list(range(60)), SCHEMA)
    assert again == answers


def test_a_schema_that_cannot_be_enforced_is_the_users_error(wide: VllmEngine) -> None:
    for impossible in ({"type": "string", "pattern": "(?=x)y"}, {"type": "integer", "minimum": 5, "maximum": 3}):
        with pytest.raises(UserError, match="`json_schema` can't be enforced"):
            wide.generate([[5, 6]], Sampling(json_schema=json.dumps(impossible)), [0])
    assert len(wide.generate([[5, 6]], Sampling(max_tokens=3, min_tokens=3), [0])[0].token_ids) == 3


def test_what_is_not_a_schema_is_told_when_the_recipe_is_read() -> None:
    with pytest.raises(ValidationError, match="not a JSON Schema: at properties/a/type: 'strin' is not valid"):
        Candidates(json_schema={"type": "object", "properties": {"a": {"type": "strin"}}})


class Scripted:
    """Answers from a list, in order: what no random model can be made to say."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked = list(texts), list[list[Message]]()

    def complete(self, conversations: Any, sampling: Any, seeds: Any) -> list[Answer | Failure]:
        self.asked += conversations
        return [Answer(self.texts.pop(0), "stop", None, None, None, 0, 0) for _ in conversations]

    def forget(self, answers: Any) -> None:
        self.forgotten = [answer.text for answer in answers]

    def close(self) -> None: ...


def test_a_wrong_answer_is_repaired_once_or_fails_with_its_reason() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    backend = Scripted('{"n": 1}', '{"n": "x"}', "no", '{"n": 2}', "[]")
    answers, repaired = json_answers.complete(backend, ASK[:3], Sampling(), [0, 1, 2], schema)
    assert [answer.text for answer in answers if isinstance(answer, Answer)] == ['{"n": 1}', '{"n": 2}']
    assert repaired == {1}
    failure = answers[2]
    assert isinstance(failure, Failure) and failure.reason == "invalid_json" and "it is not JSON" in failure.detail
    assert backend.forgotten == ["no", "[]"]  # what was repaired is kept: the row rests on both answers
    assert backend.asked[3][:2] == [*ASK[1], {"role": "assistant", "content": '{"n": "x"}'}]
    assert "at n: 'x' is not of type 'integer'" in backend.asked[3][2]["content"]
