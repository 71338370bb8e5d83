"""Prompts become the ids a model was trained on; answers become text."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import UserError
from generators.text.chat_template import ChatTemplate
from generators.text.prompts import decode, load_tokenizer, prompt_of

ASK = [{"role": "user", "content": "What is the capital of France?"}]


def test_a_chat_model_gets_its_template_and_the_assistants_header(tiny: Path) -> None:
    tokenizer = load_tokenizer(str(tiny))
    ids = ChatTemplate(tokenizer).prompt(ASK)
    assert tokenizer.decode(ids) == "<|user|>What is the capital of France?<|end|><|assistant|>"
    assert decode(tokenizer, ids) == "What is the capital of France?"


def test_a_base_model_gets_lines_of_text(untied: Path) -> None:
    tokenizer = load_tokenizer(str(untied))
    ids = ChatTemplate(tokenizer).prompt([{"role": "system", "content": "Facts."}, *ASK])
    assert tokenizer.decode(ids) == "Facts.\nWhat is the capital of France?\n"
    assert tokenizer.eos_token_id not in ids


def test_a_tokenizer_is_what_transformers_would_load(tiny: Path, untied: Path) -> None:
    from transformers import AutoTokenizer
    from transformers.models.auto import tokenization_auto

    assert "llama" not in tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    for folder in (tiny, untied):
        ours, theirs = load_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
        assert type(ours) is type(theirs)
        assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
        assert repr(ours) == repr(theirs) and ours.chat_template == theirs.chat_template
        assert ours.special_tokens_map == theirs.special_tokens_map and ours.padding_side == theirs.padding_side


def test_prompt_rows_and_conversation_rows() -> None:
    answer = {"role": "assistant", "content": "Paris."}
    assert prompt_of({"prompt": ASK, "reference": "Paris"}) == (ASK, "Paris")
    assert prompt_of({"messages": [*ASK, answer], "reference": "Paris"}) == (ASK, "Paris")
    assert prompt_of({"messages": [*ASK, answer], "reference": None}) == (ASK, "Paris.")
    assert prompt_of({"messages": [*ASK, answer, *ASK, answer], "reference": ""}) == ([*ASK, answer, *ASK], "")
    assert prompt_of({"messages": ASK}) == (ASK, None)
    guessed = {"messages": [*ASK, answer], "metadata": '{"model": "m", "value": 1.0}'}
    assert prompt_of(guessed) == (ASK, None) and prompt_of({**guessed, "reference": "Paris"}) == (ASK, "Paris")
    for noted in (None, "", "not JSON", "[1]", '{"source": "people"}'):
        assert prompt_of({**guessed, "metadata": noted}) == (ASK, "Paris.")


def test_a_folder_without_a_tokenizer_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer can be loaded from"):
        load_tokenizer(str(tmp_path))
