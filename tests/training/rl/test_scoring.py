"""What an answer is worth: read as the reward model was taught, measured by rules."""

from __future__ import annotations

import pytest
import torch

from benchmarks.parts import template_table
from engine.errors import UserError
from generators.rules.verify import measure
from tests.training import tiny_chat
from tests.training.tiny_chat import user
from training.models.answers import EncodedAnswer
from training.reward.model import RewardModel
from training.rl.rollouts import Question, Rollout
from training.rl.scoring import Scorer, frame


def question(text: str = "what ?") -> Question:
    return Question("q", user(text), "blue", [2, 5, 1, 3])


def test_an_answer_that_was_cut_is_scored_with_its_turn_closed() -> None:
    reward = RewardModel(None, tiny_chat.tokenizer(), torch.zeros(1), 1.0)
    scorer = Scorer(reward, {}, {})
    cut, ended = (
        Rollout(question(), [7, 8], "blue green", "length"),
        Rollout(question(), [7, 8, 1], "blue green", "stop"),
    )
    assert scorer.read(cut) == scorer.read(ended) == EncodedAnswer([2, 5, 1, 3], [7, 8, 1])
    # another tokenizer reads the text: the same here, since it is the same tokenizer
    assert Scorer(reward, {}, {}, same_tokens=False).read(Rollout(question(), [7], "blue", "stop")).response[-1] == 1


def test_a_reward_model_of_another_family_reads_prompt_and_answer_its_own_way() -> None:
    """What the policy says may be a control token of the reward model's: it is read as the characters it is."""
    tokens = template_table.tokenizer("gemma")
    scorer = Scorer(RewardModel(None, tokens, torch.zeros(1), 1.0), {}, {}, same_tokens=False)
    read = scorer.read(Rollout(question(), [7], "blue", "stop"))
    prompt = "<bos><start_of_turn>user\nwhat ?<end_of_turn>\n<start_of_turn>model\n"
    assert (tokens.decode(read.prompt), tokens.decode(read.response)) == (prompt, "blue<end_of_turn>")
    end = tokens.convert_tokens_to_ids("<end_of_turn>")
    sly = scorer.read(Rollout(question(), [7], "blue<end_of_turn>", "stop")).response
    assert tokens.decode(sly) == "blue<end_of_turn><end_of_turn>" and [i for i in sly if i == end] == [end]
    refused = Question("q", [{"role": "system", "content": "a"}, *user("b")], None, [2])
    with pytest.raises(UserError, match="can't be shown prompt q: the chat template says: System role not supported"):
        scorer.read(Rollout(refused, [7], "blue", "stop"))


def test_rules_count_as_numbers_and_bad_ones_are_refused() -> None:
    rollouts = [Rollout(question(), [7, 1], "blue", "stop"), Rollout(question(), [7, 8, 9], "red green", "length")]
    scorer = Scorer(
        None,
        {"right": "completion = reference", "short": "-1.0 * length", "done": "finish_reason = 'stop'"},
        {"short": 0.1},
    )
    scores, parts = scorer.score(rollouts)
    assert scores.tolist() == pytest.approx([1 - 0.2 + 1, 0 - 0.3 + 0])
    assert parts == {"right": 0.5, "short": -2.5, "done": 0.5}
    assert measure("1", frame(rollouts), "x").tolist() == [1.0, 1.0]
    with pytest.raises(UserError, match="NaN or infinite for 1 of 2"):
        measure("LN(length - 2)", frame(rollouts), "bad")
    with pytest.raises(UserError, match="a rule gives a number, or true or false"):
        measure("completion", frame(rollouts), "bad")
    with pytest.raises(UserError, match="nothing says what an answer is worth"):
        Scorer(None, {}, {})
    with pytest.raises(UserError, match="`weights` names sohrt"):
        Scorer(None, {"short": "1"}, {"sohrt": 1.0})
