"""Log-probabilities of answers against transformers, one unpadded sequence at a time, in plain code."""

import pytest
import torch

from tests.training import tiny_chat
from tests.training.tiny_chat import one_thread
from training.models.answers import Answer
from training.models.logprobs import forward, token_logprobs
from training.models.padding import chunks, pad

__all__ = ["one_thread"]  # applies to every test here

ANSWERS = [Answer([5, 6, 7], [8, 9, 1]), Answer([5], [6]), Answer([4, 5, 6, 7, 8, 9], [10, 11, 12, 13, 14, 1])]


def alone(model: torch.nn.Module, answer: Answer) -> list[float]:
    ids = [*answer.prompt, *answer.response]
    logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [logits[t - 1, ids[t]].item() for t in range(len(answer.prompt), len(ids))]


def test_they_are_those_of_each_answer_alone() -> None:
    model = tiny_chat.policy()
    for answer, found in zip(ANSWERS, token_logprobs(model, ANSWERS), strict=True):
        assert found.tolist() == pytest.approx(alone(model, answer), abs=1e-5)


def test_padding_changes_nothing_and_entropy_and_hidden_stand_where_the_token_is_chosen() -> None:
    model = tiny_chat.policy()
    together = forward(model, pad(ANSWERS), entropy=True, hidden=True)
    other_pad = forward(model, pad(ANSWERS, pad_id=1), entropy=True, hidden=True)
    assert together.entropy_BR is not None and together.hidden_BRD is not None
    assert other_pad.hidden_BRD is not None
    for b, answer in enumerate(ANSWERS):
        n = len(answer.response)
        assert together.logprobs_BR[b, :n].tolist() == pytest.approx(alone(model, answer), abs=1e-5)
        output = model(torch.tensor([[*answer.prompt, *answer.response]]), output_hidden_states=True)
        at = slice(len(answer.prompt) - 1, len(answer) - 1)
        entropy = torch.distributions.Categorical(logits=output.logits[0, at]).entropy()
        assert together.entropy_BR[b, :n].tolist() == pytest.approx(entropy.tolist(), abs=1e-5)
        assert torch.allclose(together.hidden_BRD[b, :n], output.hidden_states[-1][0, at], atol=1e-5)
        assert torch.equal(together.hidden_BRD[b, :n], other_pad.hidden_BRD[b, :n])
        assert torch.equal(together.logprobs_BR[b, :n], other_pad.logprobs_BR[b, :n])


def test_chunks_hold_every_answer_once_and_no_more_tokens_than_asked() -> None:
    many = [Answer([1] * (i % 7 + 1), [1] * (i % 5 + 1)) for i in range(50)]
    found = list(chunks(many, tokens=40))
    assert sorted(i for chunk in found for i in chunk) == list(range(50))
    assert all(len(chunk) * max(len(many[i]) for i in chunk) <= 40 for chunk in found)
    assert list(chunks(many[:1], tokens=1)) == [[0]]  # longer than the budget: alone


def test_chunks_of_mixed_lengths_hold_little_padding() -> None:
    mixed = [Answer([1] * 9, [1] * (1 + i % 60)) for i in range(240)]
    for chunk in chunks(mixed):
        real, padded = sum(len(mixed[i]) for i in chunk), len(chunk) * max(len(mixed[i]) for i in chunk)
        assert padded - real <= max(512, padded / 8)
    assert len(list(chunks([Answer([1] * 9, [1] * 30)] * 240))) == 1  # nothing to gain: one pass
