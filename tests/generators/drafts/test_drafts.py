"""Drafts go on in lockstep: with a planned model, and with a real engine, guided and from token ids."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from engine import seeds
from generators.backends.local_model import Local
from generators.backends.protocol import Failure, Sampling
from generators.drafts.drafts import Draft, Execution, Made, Query, Rejected, user
from generators.drafts.lockstep import carry
from generators.instructions.methods.magpie import pre_query
from generators.rules.sandbox.programs import Limits
from generators.text.prompts import load_tokenizer
from tests.generators.planned import Planned

SAMPLING = Sampling(max_tokens=8, logprobs=False)


def derive(*parts: str | int) -> int:
    return seeds.derive(*parts)


def test_steps_are_batched_and_drafts_may_split() -> None:
    def count(n: int) -> Draft:
        said = 0
        for _ in range(n):
            answer = yield Query([user(f"{said}")], SAMPLING, template=f"t{n}")
            said = int(answer.text)
        if n == 2:
            raise Rejected("two", "of them")
        if n == 3:
            return [count(1), count(0)]
        outcome = yield Execution(f"print({said} * 10)", Limits())
        return Made([user(outcome.stdout.strip())], str(said))

    backend = Planned(lambda text, seed: str(int(text) + 1))
    lines = carry(backend, [(10 + n, count(n)) for n in range(5)], derive)
    assert backend.batches == [4, 3, 2, 2]  # what is under way at each step is one batch; draft 3 went on as two
    assert [line.path for line in lines] == [(10,), (11,), (12,), (13, 0), (13, 1), (14,)]
    told = [
        r.reason if isinstance(r, Rejected) else r and r.messages[0]["content"] for r in (line.result for line in lines)
    ]
    assert told == ["0", "10", "two", "10", "0", "40"]
    assert lines[3].seeds == [
        derive("draft", 13, 0),
        derive("draft", 13, 1),
        derive("draft", 13, 2),
        derive("draft", 13, 0, 3),
    ]
    assert lines[3].templates == ["t3", "t1"] and lines[4].templates == ["t3"]


def test_a_request_that_fails_ends_its_own_draft() -> None:
    def one(text: str) -> Draft:
        answer = yield Query([user(text)], SAMPLING)
        return Made([user(answer.text)], answer.text)

    backend = Planned(lambda text, seed: Failure("server_failed", "gone") if text == "b" else text.upper())
    lines = carry(backend, [(i, one(text)) for i, text in enumerate("abc")], derive)
    results = [line.result for line in lines]
    assert isinstance(results[1], Rejected) and results[1].failed and results[1].reason == "server_failed"
    assert [r.key for r in results if isinstance(r, Made)] == ["A", "C"]


def test_a_real_engine(wide: Any, tiny_wide: Any) -> None:
    tokenizer = load_tokenizer(str(tiny_wide))
    schema = {
        "type": "object", "properties": {"answer": {"enum": ["yes", "no"]}}, "required": ["answer"],
        "additionalProperties": False,
    }  # fmt: skip

    def draft(number: int) -> Draft:
        answer = yield Query([user(f"Is {number} even?")], replace(SAMPLING, max_tokens=48), schema)
        said = json.loads(answer.text)["answer"]
        answer = yield Query(tuple(pre_query(tokenizer, [user(said)])), SAMPLING)
        assert answer.prompt_token_ids == pre_query(tokenizer, [user(said)]) and answer.tokens_out <= 8
        return Made([user(said), user(answer.text)], said)

    def run() -> list[Any]:
        return [line.result for line in carry(Local(wide, tokenizer), [(n, draft(n)) for n in range(16)], derive)]

    once = run()
    assert {made.key for made in once} == {"yes", "no"} and once == run()
    assert tokenizer.decode(pre_query(tokenizer, [])) == "<|user|>"
