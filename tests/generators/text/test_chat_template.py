"""Chat templates: what is learnt of a conversation is what the assistant says and the token that ends its turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trl

from engine.errors import UserError
from generators.text.chat_template import DAY, ChatTemplate, Unusable
from generators.text.learning_template import learning, marks_answers
from tests.training.tiny import tokenizer
from training.sft.examples import IGNORE, render, teach_to_end

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# Name -> the tokens of its turns, its end of sequence and the end of a turn.
TOKENS: dict[str, tuple[list[str], str, str]] = {
    "qwen3": (["<|im_start|>", "<|im_end|>"], "<|im_end|>", "<|im_end|>"),
    "qwen2_5": (["<|im_start|>", "<|im_end|>"], "<|endoftext|>", "<|im_end|>"),
    "llama3": (["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"], "<|end_of_text|>", "<|eot_id|>"),
    "gemma": (["<start_of_turn>", "<end_of_turn>", "<eos>"], "<eos>", "<end_of_turn>"),
    "deepseek_r1_distill": (["<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"], "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "phi3": ([], "<|endoftext|>", "<|end|>"),
    "cohere2": (["<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>"], "<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    "gptoss": (["<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|end|>", "<|call|>"], "<|return|>", "<|return|>"),
}  # fmt: skip
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ ' [INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles!') }}{% endif %}{% endfor %}"
)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


TALK = [
    turn("user", "Hi!"), turn("assistant", "Hello Bob."),
    turn("user", "And?"), turn("assistant", "So\n\nlong."),
]  # fmt: skip


def chat(name: str, template: str | None = None) -> Any:
    """A byte-level tokenizer with TRL's template of that name, or another, and the tokens that it needs."""
    special, eos, _ = TOKENS[name]
    made = tokenizer()
    made.add_tokens([*special, "<bos>"], special_tokens=True)
    made.eos_token, made.bos_token = eos, "<bos>"
    made.chat_template = template or (TEMPLATES / f"{name}.jinja").read_text()
    return made


def edited(name: str) -> Any:
    """With a template that TRL does not know, since a user changed it."""
    return chat(name, (TEMPLATES / f"{name}.jinja").read_text() + "{# {% generation %} would mark it #}")


def learnt(tokens: Any, messages: list[dict[str, str]]) -> str:
    """What is learnt, and that nothing else became of the conversation than the text which the template makes of it."""
    template = learning(tokens)
    example = render(template, "x", messages)
    assert tokens.decode(example.input_ids) == template.render(messages)
    assert all(label in (IGNORE, i) for i, label in zip(example.input_ids, example.labels, strict=True))
    return tokens.decode([label for label in example.labels if label != IGNORE])


@pytest.mark.parametrize("make", [chat, edited])
@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "gemma", "deepseek_r1_distill", "phi3"])
def test_what_is_learnt_is_what_the_assistant_says_and_its_end(name: str, make: Any) -> None:
    tokens, end = make(name), TOKENS[name][2]
    assert learnt(tokens, TALK[:2]) == f"Hello Bob.{end}"
    assert learnt(tokens, TALK) == f"Hello Bob.{end}So\n\nlong.{end}"
    if name != "gemma":
        assert learnt(tokens, [turn("system", "Be brief."), *TALK[:2]]) == f"Hello Bob.{end}"


def test_what_a_template_has_the_model_write_itself_is_learnt() -> None:
    """An empty thought, which no prompt of Qwen3 holds; the channel that every answer of gpt-oss opens, and its two ends."""
    thought = "<think>\n\n</think>\n\n"
    assert learnt(chat("qwen3"), TALK) == f"{thought}Hello Bob.<|im_end|>{thought}So\n\nlong.<|im_end|>"
    assert learnt(edited("qwen3"), TALK[:2]) == f"{thought}Hello Bob.<|im_end|>"
    reasoned = [TALK[0], turn("assistant", "<think>\nwho?\n</think>\n\nBob.")]
    assert learnt(chat("qwen3"), reasoned) == "<think>\nwho?\n</think>\n\nBob.<|im_end|>"
    # A prompt of DeepSeek-R1 ends with `<think>`: of a thought, what follows is learnt.
    assert learnt(chat("deepseek_r1_distill"), reasoned) == "who?\n</think>\n\nBob.<｜end▁of▁sentence｜>"
    assert learnt(chat("cohere2"), TALK[:2]) == "Hello Bob.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"
    final = "<|channel|>final<|message|>"
    assert learnt(chat("gptoss"), TALK) == f"{final}Hello Bob.<|end|>{final}So\n\nlong.<|return|>"


def test_the_mask_of_trl_holds_all_that_is_learnt() -> None:
    """Its tags take some templates' headers in, and the new line after a turn; what is learnt here lies inside them."""
    for name in TOKENS:
        tokens = chat(name)
        template = learning(tokens)
        assert not template.marked and marks_answers(template.template)
        ids, mask = template.encode(TALK)
        trls = tokens.apply_chat_template(
            TALK, chat_template=template.template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
            strftime_now=DAY.strftime,
        )  # fmt: skip
        assert ids == trls["input_ids"]
        assert all(theirs for ours, theirs in zip(mask, trls["assistant_masks"], strict=True) if ours)


def test_a_tag_is_what_the_parser_takes_for_one() -> None:
    tag = "{%- for m in messages -%}{%+ generation -%}{{ m }}{% endgeneration %}{%- endfor -%}"
    assert marks_answers(tag)
    assert not marks_answers("{% if add_generation_prompt %}generation{% endif %}")
    assert not marks_answers("{# {% generation %} #}{{ '{% generation %}' }}{% raw %}{% generation %}{% endraw %}")
    with pytest.raises(UserError, match=r"can't be read: .*endgeneration"):
        marks_answers("{% generation %}")


def test_a_turn_that_is_rewritten_later_is_not_guessed() -> None:
    """Qwen3's own template takes the thought out of every turn but the last: no prefix shows what was said."""
    tokens = edited("qwen3")
    with pytest.raises(Unusable, match="renders message 1 otherwise") as caught:
        learning(tokens).encode(TALK)
    assert caught.value.reason == "rewritten_turn"
    dropping = (
        "{% for m in messages %}{{ '<|im_start|>' + m['content'].split('</think>')[-1] + '<|im_end|>' }}{% endfor %}"
    )
    template = learning(chat("qwen3", dropping))
    assert learnt(template.tokenizer, TALK[:2]) == "<|im_start|>Hello Bob.<|im_end|>"
    with pytest.raises(Unusable, match="leaves out a part of message 1"):
        template.encode([TALK[0], turn("assistant", "<think>a</think>b")])


def test_an_answer_begins_with_a_token_of_its_own() -> None:
    """ " Bob" is one token, and the header ends with the blank: a prompt ends there, so the answer begins with "Bob"."""
    glued = "{% for m in messages %}{{ m['role'] + ': The ' + m['content'] + '<|end|>' }}{% endfor %}" \
        "{% if add_generation_prompt %}assistant: The {% endif %}"  # fmt: skip
    tokens = chat("phi3", glued)
    assert tokens.tokenize("The capital") == ["The", "Ġcapital"]
    said = [TALK[0], turn("assistant", "capital of Peru."), *TALK[2:]]
    assert learnt(tokens, said) == "capital of Peru.<|end|>So\n\nlong.<|end|>"
    prompt = ChatTemplate(tokens).prompt(said[:1])
    ids, mask = learning(tokens).encode(said)
    assert ids[: len(prompt)] == prompt and mask.index(True) == len(prompt)


def test_a_template_without_an_end_or_for_parts_is_refused() -> None:
    with pytest.raises(UserError, match="never learn to stop"):
        teach_to_end(None, chat("phi3", "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"))
    for name, words in (("idefics3", "list of parts"), ("llava_next", "list of parts")):
        with pytest.raises(UserError, match=words):
            teach_to_end(None, chat("phi3", (TEMPLATES / f"{name}.jinja").read_text()))
    with pytest.raises(UserError, match="expected token 'end of print statement'"):
        teach_to_end(None, chat("phi3", "{{ a b }}"))


def test_white_space_and_words_that_are_tokens_end_no_turn() -> None:
    """As in Gemma's vocabulary, which has line feeds and words of HTML among its added tokens."""
    tokens = chat("gemma")
    tokens.add_tokens(["\n", "\n\n", "model", "<h1>"])
    template = learning(tokens)
    assert template.end == "<end_of_turn>" and not {"\n", "model", "<h1>"} & set(template.control)
    said = [turn("user", "a model\n<h1>"), turn("assistant", "So\n\na <h1> model.")]
    assert learnt(tokens, said) == "So\n\na <h1> model.<end_of_turn>"


def test_a_conversation_has_the_same_tokens_on_every_day(monkeypatch: pytest.MonkeyPatch) -> None:
    dated = "{{ strftime_now('%d %b %Y') }}" + MISTRAL
    assert ChatTemplate(chat("phi3", dated)).render(TALK).startswith("26 Jul 2024")


def test_mistrals_way_of_an_end_needs_no_header() -> None:
    tokens = chat("phi3", MISTRAL)
    assert ChatTemplate(tokens).end == "<|endoftext|>"
    assert learnt(tokens, TALK) == " Hello Bob.<|endoftext|> So\n\nlong.<|endoftext|>"
