"""Talking to a model in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import LlamaConfig
from typer.testing import CliRunner

from engine.store.store import Store
from generators.chat.command import app
from generators.chat.conversation import load, side_by_side
from tests.training.models.test_gguf import SHAPE, save
from training.models.gguf.to_gguf import write


def test_two_models_answer_every_question(tiny: Path) -> None:
    arguments = [str(tiny), "--versus", str(tiny), "--max-tokens", "4", "--temperature", "0"]
    done = CliRunner().invoke(app, arguments, input="hello\n/new\nhello\n\n")
    assert done.exit_code == 0, done.output
    answers = [line.rpartition("▸")[2] for line in done.output.splitlines() if str(tiny) in line]
    assert len(answers) == 4 and len(set(answers)) == 1


def test_a_gguf_talks(tmp_path: Path, monkeypatch: Any) -> None:
    save(tmp_path / "given", LlamaConfig(**SHAPE))
    write(tmp_path / "given", tmp_path / "it.gguf", "mine")
    monkeypatch.setenv("FLYWHEEL_STORE", str(tmp_path / "store"))
    answers: set[str] = set()
    for name in ("given", "it.gguf", "it.gguf"):
        arguments = [str(tmp_path / name), "--max-tokens", "6", "--temperature", "0"]
        done = CliRunner().invoke(app, arguments, input="hello\n\n")
        assert done.exit_code == 0, done.output
        answers.add(next(line.rpartition("▸")[2] for line in done.output.splitlines() if str(tmp_path) in line))
    assert len(answers) == 1 and len(list(Store(str(tmp_path / "store")).artifacts())) == 1


def test_what_the_model_can_not_be_asked_is_said_and_the_conversation_goes_on(tiny: Path) -> None:
    done = CliRunner().invoke(app, [str(tiny), "--max-tokens", "4"], input="a<|end|>b\nhello\n\n")
    assert done.exit_code == 0, done.output
    assert "message 0, of the user, has <|end|> in it" in done.output and "/new" in done.output
    assert done.output.count("▸") >= 4  # the second question was answered


def test_a_model_that_is_not_there(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("FLYWHEEL_STORE", str(tmp_path / "store"))
    done = CliRunner().invoke(app, ["nowhere"])
    assert done.exit_code == 2 and "no finished artifact `nowhere`" in done.output


def test_an_adapter_talks_on_its_base_and_old_turns_make_room(tiny: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapted: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), LoraConfig(task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(5.0)
    adapted.peft_config["default"].base_model_name_or_path = str(tiny)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "adapter")
    talker = load(str(tmp_path / "adapter"), Store(str(tmp_path / "store")))
    pieces: list[str] = []
    first = talker.answer("hello", 0, 8, pieces.append)
    assert "".join(pieces).strip() == first
    assert first != load(str(tiny), Store(str(tmp_path / "store"))).answer("hello", 0, 8)
    for _ in range(8):  # the context holds 128 tokens
        talker.answer("what is the capital of France?", 0, 30)
    assert 2 <= len(talker.messages) < 18 and talker.messages[0]["role"] == "user"


def test_two_columns_fill_side_by_side(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    store = Store(str(tmp_path / "store"))
    talkers = [load(str(tiny), store), load(str(tiny), store)]
    talkers[0].name, talkers[1].name = "left", "right"
    side_by_side(talkers, "hello", 0, 4)
    shown = capsys.readouterr().out
    assert "left" in shown and "right" in shown
    assert talkers[0].messages == talkers[1].messages and len(talkers[0].messages) == 2
