"""The chat templates that TRL ships: what is learnt with each is what the assistant says and the end of its turn."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.parts import template_table as table
from generators.text.chat_template import ChatTemplate, Unusable
from generators.text.learning_template import learning

IMAGES = {"idefics3", "llava_next", "smolvlm"}  # which take what is said as a list of parts
NO_CALLS = {
    "cohere", "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma", "gemma3", "lfm2", "llama3", "phi3", "phi3_5", "qwen2_5_vl",
}  # fmt: skip


@pytest.mark.parametrize("name", table.names())
def test_every_template_trains_or_is_refused_with_the_true_reason(name: str) -> None:
    row = table.row(name)
    if name in IMAGES:
        assert not row["sft"] and "list of parts" in row["reason"]
        return
    assert row["sft"] and row["dpo"] and row["two turns"], row
    assert row["tool call"] != (name in NO_CALLS), row
    if name in NO_CALLS:
        assert "tool call: the chat template" in row["reason"]
    assert ("System role not supported" in row["reason"]) == (name == "gemma")


def test_thirty_and_more_train() -> None:
    assert len(table.names()) == 41 and len(set(table.names()) - IMAGES) >= 30


CALLS = {
    "qwen3": '<tool_call>\n{"name": "weather", "arguments": {"city": "Lima", "days": 3}}\n</tool_call><|im_end|>',
    "gemma4_v5": '<|tool_call>call:weather{city:<|"|>Lima<|"|>,days:3}<tool_call|><|tool_response>',
    "llama3_1": '{"name": "weather", "parameters": {"city": "Lima", "days": 3}}<|eot_id|>',
    "lfm2_2_5": "<|tool_call_start|>[weather(city='Lima', days=3)]<|tool_call_end|><|im_end|>",
    "gptoss": ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Lima", "days": 3}<|call|>',
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_learnt_in_the_templates_own_words(name: str) -> None:
    template = learning(table.tokenizer(name))
    said = table.learnt(template, table.CALLING[:2], table.TOOLS)
    assert said.endswith(CALLS[name]) and said.removesuffix(CALLS[name]) in ("", "<think>\n\n</think>\n\n")
    assert table.answered(template, table.CALLING[:2], table.TOOLS) == said
    asked = template.tokenizer.decode(template.prompt(table.CALLING[:1], table.TOOLS))
    assert "weather" in asked and "Where." in asked  # the tools are shown
    stops = template.tokenizer.convert_ids_to_tokens(list(template.stop_ids(tools=True)))
    assert set(stops) >= {template.end, CALLS[name][CALLS[name].rindex("<") :]}


def test_arguments_come_as_each_template_takes_them() -> None:
    """DeepSeek-V3 concatenates JSON text, and would refuse the object that the others take."""
    template = learning(table.tokenizer("deepseekv3"))
    said = table.learnt(template, table.CALLING)  # without a column `tools`, which it has no place for
    assert '<｜tool▁sep｜>weather\n```json\n{"city": "Lima", "days": 3}\n```' in said
    with pytest.raises(Unusable, match="doesn't show the model its tools") as caught:
        template.encode(table.CALLING, table.TOOLS)
    assert caught.value.reason == "tool_calls"


@pytest.mark.parametrize(
    ("name", "learnt", "kept"),
    [
        ("qwen3", "<think>\nHm, Bob?\n</think>\n\nI am Bob.<|im_end|>", "I am Bob.<|im_end|>"),
        ("phi3", "<think>\nHm, Bob?\n</think>\n\nI am Bob.<|end|>", "I am Bob.<|end|>"),
        ("lfm2_2_5_v2", "<think>Hm, Bob?</think>I am Bob.<|im_end|>", "I am Bob.<|im_end|>"),
        ("gemma4_v5", "<|channel>thought\nHm, Bob?\n<channel|>I am Bob.<turn|>", "I am Bob.<turn|>"),
        ("nemotron_3_nano", "Hm, Bob?\n</think>\nI am Bob.<|im_end|>", "I am Bob.<|im_end|>"),
        (
            "gptoss",
            "<|channel|>analysis<|message|>Hm, Bob?<|end|><|start|>assistant<|channel|>final<|message|>I am Bob.<|return|>",
            "I am Bob.<|return|>",
        ),
        (
            "muse_glimmer",
            " to=self<|message|>Hm, Bob?<|eom|><|start|>assistant to=user<|message|>I am Bob.<|eot|>",
            "I am Bob.<|eot|>",
        ),
    ],
)
def test_a_thought_is_learnt_kept_or_dropped(name: str, learnt: str, kept: str) -> None:
    tokens = table.tokenizer(name)
    template = learning(tokens)
    thought = [table.SINGLE[0], {**table.SINGLE[1], "reasoning_content": "Hm, Bob?"}]
    block = [table.SINGLE[0], {"role": "assistant", "content": "<think>\nHm, Bob?\n</think>\n\nI am Bob."}]

    def said(messages: list[Any], reasoning: Any) -> tuple[str, str]:
        ids, mask = template.encode(messages, reasoning=reasoning)
        return tokens.decode([i for i, m in zip(ids, mask, strict=True) if m]), tokens.decode(ids)

    for messages in (thought, block):
        assert said(messages, "learn")[0] == learnt
        assert said(messages, "keep")[0] == kept and "Hm, Bob?" in said(messages, "keep")[1]
        assert said(messages, "drop") == said(table.SINGLE, "learn")
    ids = template.answer(thought[:1], thought[1:])[1]
    text = tokens.decode(ids, skip_special_tokens=True)
    assert ChatTemplate(tokens).apart(ids, text) == ("Hm, Bob?", "I am Bob.")
    plain = template.answer(table.SINGLE[:1], table.SINGLE[1:])[1]
    text = tokens.decode(plain, skip_special_tokens=True).strip()
    assert ChatTemplate(tokens).apart(plain, text) == ("", "I am Bob.")


def test_a_thought_that_the_prompt_began_is_told_from_the_answer() -> None:
    """DeepSeek-R1's prompts end with `<think>`: the answer begins behind `</think>`, and is empty where it was cut before."""
    tokens = table.tokenizer("deepseek_r1_distill")
    template = ChatTemplate(tokens)
    assert template.apart([], "Hm.\n</think>\n\nI am Bob.") == ("Hm.", "I am Bob.")
    assert template.apart([], "Hm, and then") == ("Hm, and then", "")
    assert ChatTemplate(table.tokenizer("qwen3")).apart([], "a </think> b") == ("", "a </think> b")
