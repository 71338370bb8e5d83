"""The chat templates that TRL ships, each with its own special tokens on a tiny tokenizer: what is learnt with each."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from engine.errors import UserError
from generators.text.chat_template import DAY, Unusable
from generators.text.learning_template import LearningTemplate, learning
from generators.text.prompts import Message
from generators.text.tools import tools_of

# What stands between brackets of these kinds is a token of its own in the models that the templates are from; XML is not.
SPECIAL = re.compile(
    r"<\|[^|<>\s'\"{}]+\|>|<｜[^｜<>]+｜>|<\|[a-z_]+>|<[a-z_]+\|>|<\|\"\|>|<(?:start|end)_of_(?:turn|utterance)>|\[gMASK\]|<sop>"
)
# Name -> begin and end of a sequence, where they are not those of ChatML.
BORDERS = {
    "cohere": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "cohere2": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "gemma": ("<bos>", "<eos>"),
    "diffusion_gemma": ("<bos>", "<eos>"),
    "glm4moe": (None, "<|endoftext|>"),
    "gptoss": ("<|startoftext|>", "<|return|>"),
    "idefics3": ("<|begin_of_text|>", "<end_of_utterance>"),
    "lfm2": ("<|startoftext|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>"),
    "llava_next": ("<s>", "</s>"),
    "muse_glimmer": ("<|begin_of_text|>", "<|end_of_text|>"),
    "phi3": ("<s>", "<|endoftext|>"),
    "smolvlm": ("<|im_start|>", "<end_of_utterance>"),
}
CHATML = ("<|endoftext|>", "<|im_end|>")
# Name -> what ends a turn, last in a conversation and amid one; `<|im_end|>` where it is not named.
ENDS = {
    "cohere": ("<|END_OF_TURN_TOKEN|>",) * 2,
    "cohere2": ("<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",) * 2,
    "deepseek": ("<｜end▁of▁sentence｜>",) * 2,
    "diffusion_gemma": ("<turn|>",) * 2,
    "gemma": ("<end_of_turn>",) * 2,
    "gemma4": ("<turn|>",) * 2,
    "glm4moe": ("<|user|>",) * 2,
    "gptoss": ("<|return|>", "<|end|>"),
    "llama3": ("<|eot_id|>",) * 2,
    "muse_glimmer": ("<|eot|>",) * 2,
    "phi3": ("<|end|>",) * 2,
}
# Name -> what the model has to write before an answer without a thought.
PREFACES = {
    "glm4moe": "\n<think></think>\n",
    "gptoss": "<|channel|>final<|message|>",
    "muse_glimmer": " to=user<|message|>",
    "nemotron": "</think>",
    "qwen3": "<think>\n\n</think>\n\n",
    "qwen3_5_nothink": "",
    "qwen3_5_think": "\n</think>\n\n",
    "qwen3_6": "\n</think>\n\n",
    "qwen3_8": "\n</think>\n\n",
    "qwen3_instruct": "",
    "qwen3_vl": "",
}
SINGLE: list[Message] = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Bob."}]
DOUBLE: list[Message] = [
    *SINGLE,
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "So\n\nit is."},
]
SYSTEM: list[Message] = [{"role": "system", "content": "Be brief."}, *SINGLE]
ARGUMENTS = {"city": "Lima", "days": 3}
CALLING: list[Message] = [
    {"role": "user", "content": "Weather there?"},
    {"role": "assistant", "content": "", "tool_calls": json.dumps([
        {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}}
    ])},
    {"role": "tool", "content": "21 degrees", "tool_call_id": "call00001", "name": "weather"},
    {"role": "assistant", "content": "It is mild."},
]  # fmt: skip
TOOLS = json.dumps([{"type": "function", "function": {
    "name": "weather", "description": "The weather.",
    "parameters": {"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "description": "Where."}, "days": {"type": "integer", "description": "How long."},
    }},
}}])  # fmt: skip


def _of(name: str, table: dict[str, Any], default: Any) -> Any:
    """The entry for the family that a template belongs to: the longest name that its own begins with."""
    return table.get(max((known for known in table if name.startswith(known)), key=len, default=""), default)


@cache
def _texts() -> dict[str, str]:
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    return {file.stem: file.read_text() for file in sorted(folder.glob("*.jinja")) if "training" not in file.stem}


def names() -> list[str]:
    """Every chat template that TRL ships; its variants for training are not counted."""
    return list(_texts())


def tokenizer(name: str) -> Any:
    """A byte-level tokenizer with this template and the special tokens that it writes, and no other."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    begin, end = _of(name, BORDERS, CHATML)
    raw = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=end, bos_token=begin)
    made.add_tokens(sorted(set(SPECIAL.findall(_texts()[name]))), special_tokens=True)
    made.chat_template = _texts()[name]
    return made


def expected(name: str, messages: Sequence[Message]) -> str:
    """What a model with this template says in a conversation without calls of tools, written by hand."""
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    last, amid = _of(name, ENDS, ("<|im_end|>",) * 2)
    preface = _of(name, PREFACES, "")
    return "".join(f"{preface}{text}{last if i == len(said) - 1 else amid}" for i, text in enumerate(said))


def learnt(template: LearningTemplate, messages: Sequence[Message], tools: str | None = None) -> str:
    """What `sft` learns of a conversation, as text.

    Raises:
        Unusable: the template can't render it.
    """
    ids, mask = template.encode(messages, tools)
    return str(template.tokenizer.decode([token for token, said in zip(ids, mask, strict=True) if said]))


def answered(template: LearningTemplate, messages: Sequence[Message], tools: str | None = None) -> str:
    """What `dpo` learns of the last message, as text.

    Raises:
        Unusable: the template can't render it.
        AssertionError: prompt and answer are not the tokens of the whole conversation.
    """
    prompt, answer = template.answer(messages[:-1], messages[-1:], tools)
    whole = template.encode(messages, tools)[0]
    assert [*prompt, *answer] == whole[: len(prompt) + len(answer)]
    return str(template.tokenizer.decode(answer))


def rendered(template: LearningTemplate, messages: Sequence[Message], tools: str | None = None) -> list[int]:
    """The ids of a plain conversation as transformers gives them."""
    given = template.tokenizer.apply_chat_template(
        list(messages), tools=tools_of(tools) or None, chat_template=template.template, return_dict=True,
        strftime_now=DAY.strftime,
    )  # fmt: skip
    return list(given["input_ids"])


def row(name: str) -> dict[str, Any]:
    """What trains with one template: in `sft`, in `dpo`, on two turns, on a call of a tool; and why the rest does not."""
    found: dict[str, Any] = {"template": name, "sft": False, "dpo": False, "two turns": False, "tool call": False}
    try:
        template = learning(tokenizer(name))
    except UserError as error:
        return {**found, "reason": str(error)}
    reasons: list[str] = []
    found["sft"] = learnt(template, SINGLE) == expected(name, SINGLE) and template.encode(SINGLE)[0] == rendered(
        template, SINGLE
    )
    found["two turns"] = learnt(template, DOUBLE) == expected(name, DOUBLE)
    last = expected(name, SINGLE[:1] + DOUBLE[-1:])
    found["dpo"] = answered(template, SINGLE) == expected(name, SINGLE) and answered(template, DOUBLE) == last
    try:
        found["sft"] = found["sft"] and learnt(template, SYSTEM) == expected(name, SYSTEM)
    except Unusable as fault:
        reasons.append(f"system message: {fault.detail}")
    try:
        said = learnt(template, CALLING, TOOLS)
        call, end, _ = said.partition("It is mild.")
        found["tool call"] = (
            bool(end)
            and all(part in call for part in ("weather", "city", "Lima", "days", "3"))
            and "21 degrees" not in said
            and "Weather there?" not in said
            and answered(template, CALLING, TOOLS).endswith(said[said.rindex("It is mild.") :])
        )
    except Unusable as fault:
        reasons.append(f"tool call: {fault.detail}")
    return {**found, "reason": "; ".join(reasons)}


def rows() -> list[dict[str, Any]]:
    """The table: one row for each template."""
    return [row(name) for name in names()]
