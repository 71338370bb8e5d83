"""SFT: what is learnt is what the assistant says, its end included; the same however it is packed, cut or interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import StageFailed, UserError
from engine.stage.job import Job
from engine.store.artifact import Artifact
from engine.store.store import Store
from generators.text.learning_template import learning
from tests.training import killed
from tests.training.tiny import CONVERSATIONS as ROWS
from tests.training.tiny import SFT as CONFIG
from tests.training.tiny import base, tokenizer, turn
from training.sft.examples import IGNORE, TEMPLATE, Example, render, show, teach_to_end, to_table
from training.sft.stage import Sft


@pytest.fixture
def chat() -> Any:
    made = tokenizer()
    made.chat_template = TEMPLATE.read_text()
    made.eos_token = "<|end|>"
    return made


def test_the_template_renders_what_it_says(chat: Any) -> None:
    text = chat.apply_chat_template(ROWS[3]["messages"], tokenize=False)
    assert text == (
        "<|system|>Be brief.<|end|><|user|>What is the capital of Italy?<|end|><|assistant|>Rome.<|end|>"
        "<|user|>Sure?<|end|><|assistant|>Yes.<|end|>"
    )
    prompt = chat.apply_chat_template(ROWS[2]["messages"][:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|user|>What is the capital of Peru?<|end|><|assistant|>"
    assert chat.apply_chat_template(ROWS[2]["messages"], tokenize=False).startswith(prompt)


def test_only_answers_and_their_ends_are_learnt(chat: Any) -> None:
    example = render(learning(chat), "x", ROWS[3]["messages"])
    learnt = [i for i in example.labels if i != IGNORE]
    assert chat.decode(learnt) == "Rome.<|end|>Yes.<|end|>"
    assert [i for i, label in zip(example.input_ids, example.labels, strict=True) if label != IGNORE] == learnt
    assert show(chat, render(learning(chat), "x", ROWS[0]["messages"][:2])) == (
        "<|user|>What is the capital of France?<|end|><|assistant|>«Paris.<|end|>»"
    )


def greedy(artifact: Artifact, question: str) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(artifact.location)
    made = AutoTokenizer.from_pretrained(artifact.location)
    ids = made.apply_chat_template([turn("user", question)], add_generation_prompt=True, return_tensors="pt")
    ids = ids if isinstance(ids, torch.Tensor) else ids["input_ids"]
    return made.decode(model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :])


def test_the_end_is_learnt_and_everything_agrees_on_it(store: Store, given: Any, build: Any) -> None:
    import json

    conversations = given("Conversation", [r for r in ROWS if len(r["messages"]) == 2])
    made = build(Sft, {"model": base(store), "conversations": conversations}, **{**CONFIG, "steps": 60})
    answer = greedy(made, "What is the capital of Peru?")
    assert answer == "Lima.<|end|>"  # generation stopped there by itself
    end = tokenizer().convert_tokens_to_ids("<|end|>")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((made.path / name).read_text())["eos_token_id"] == end
    assert json.loads((made.path / "tokenizer_config.json").read_text())["eos_token"] == "<|end|>"
    assert (made.path / "chat_template.jinja").read_text() == TEMPLATE.read_text()
    assert made.manifest["summary"]["learnt_tokens"] > 0


def losses(store: Store, conversations: Artifact, name: str, **config: Any) -> tuple[Job, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    stage = Sft(**{**CONFIG, **config})
    inputs = {"model": {"m": base(store)}, "conversations": {"c": conversations}}
    job = Job(store, name, "Model", inputs, 3, emit=events.append)
    stage.run(job)
    return job, [event for event in events if event["event"] == "metric"]


def test_the_first_loss_is_what_a_hand_computes(store: Store, given: Any, chat: Any) -> None:
    from transformers import AutoModelForCausalLM

    conversations = given("Conversation", ROWS)
    _, metrics = losses(store, conversations, "hand", batch=6, steps=1)
    model = AutoModelForCausalLM.from_pretrained(base(store).location)
    total, count = 0.0, 0
    for row in ROWS:  # one at a time: no padding, no batch
        example = render(learning(chat), row["id"], row["messages"])
        with torch.no_grad():
            logp = torch.log_softmax(model(torch.tensor([example.input_ids])).logits[0], -1)
        for at in range(1, len(example.input_ids)):
            if example.labels[at] != IGNORE:
                total -= float(logp[at - 1, example.labels[at]])
                count += 1
    assert metrics[0]["loss"] == pytest.approx(total / count, rel=1e-5)


def test_packing_and_accumulation_change_nothing(store: Store, given: Any) -> None:
    conversations = given("Conversation", ROWS)
    whole = losses(store, conversations, "whole", batch=6, steps=1)[1][0]
    single = losses(store, conversations, "single", batch=6, micro_batch=1, steps=1)[1][0]
    packed = losses(store, conversations, "packed", batch=6, packing=True, max_length=120, steps=1)[1][0]
    for other in (single, packed):
        assert other["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


@pytest.mark.parametrize("lora", [None, {"r": 4, "dropout": 0.1, "merge": False}], ids=["full", "lora"])
def test_an_interrupted_run_ends_with_the_same_bytes(store: Store, given: Any, monkeypatch: Any, lora: Any) -> None:
    from trl import SFTTrainer

    conversations = given("Conversation", ROWS)
    straight, _ = losses(store, conversations, "straight", lora=lora)
    step_of = SFTTrainer.training_step
    calls: list[int] = []

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step_of(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SFTTrainer, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            losses(store, conversations, "broken", lora=lora, checkpoint_every=2)
    # What a kill in the middle of a save leaves: a newer folder that is not whole.
    torn = store.scratch("broken") / "checkpoints" / "checkpoint-6"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_step": 6}')
    monkeypatch.setattr(SFTTrainer, "training_step", lambda self, *a, **k: (calls.append(1), step_of(self, *a, **k))[1])
    resumed, metrics = losses(store, conversations, "broken", lora=lora, checkpoint_every=2)
    assert len(calls) == 4 and metrics[0]["step"] == 5  # steps 5 to 8: it went on from checkpoint 4
    ours, truth = weights(resumed.output), weights(straight.output)
    assert all(torch.equal(ours[name], truth[name]) for name in truth) and ours.keys() == truth.keys()


def test_kill_9_and_resume_give_the_same_digest(store: Store, given: Any, tmp_path: Path) -> None:
    """With LoRA and dropout, so that random states count; `benchmarks.training` kills all weights' training, too."""
    model, conversations = base(store), given("Conversation", ROWS)
    spec = {
        "store": store.url,
        "stage": "training.sft.stage:Sft",
        "config": {**CONFIG, "steps": 16, "checkpoint_every": 2, "lora": {"r": 4, "dropout": 0.1, "merge": False}},
        "inputs": {"model": {"m": ["", model.id]}, "conversations": {"c": ["", conversations.id]}},
    }
    for step in (3, 6, 9, 14):  # before and after a checkpoint, right after one, and twice between two
        killed.start(spec, tmp_path, kill_at=step)
    resumed = killed.start(spec, tmp_path, kill_at=None)
    other = killed.another_store(store, model, tmp_path)
    killed.link(conversations, other)
    whole = killed.start({**spec, "store": other}, tmp_path, kill_at=None)
    assert resumed is not None and whole is not None
    assert resumed.id == whole.id and resumed.digest == whole.digest


@pytest.mark.parametrize("packing", [False, True])
def test_a_loss_that_is_no_number_names_the_rows(
    store: Store, given: Any, chat: Any, monkeypatch: Any, packing: bool
) -> None:
    from trl import SFTTrainer

    step_of = SFTTrainer.training_step
    seen: list[str] = []

    def spoilt(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2:
            model.get_output_embeddings().weight.data.fill_(float("nan"))
            seen.append(f" {' '.join(map(str, inputs['input_ids'].flatten().tolist()))} ")
        return step_of(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "training_step", spoilt)
    conversations = given("Conversation", ROWS)
    with pytest.raises(StageFailed, match=r"at step 3 the loss is nan .* The batch was of the rows") as caught:
        losses(store, conversations, "spoilt", batch=2, steps=4, packing=packing, max_length=40, checkpoint_every=1)
    named = [row["id"] for row in ROWS if row["id"] in str(caught.value)]
    ids = {row["id"]: " ".join(map(str, render(learning(chat), row["id"], row["messages"]).input_ids)) for row in ROWS}
    assert named and named == [name for name, text in ids.items() if any(f" {text} " in stream for stream in seen)]
    kept = store.scratch("spoilt") / "checkpoints"
    assert sorted(path.name for path in kept.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


def test_a_full_disk_is_said_and_the_checkpoint_before_stays(store: Store, given: Any, monkeypatch: Any) -> None:
    from trl import SFTTrainer

    save = SFTTrainer._save_optimizer_and_scheduler

    def full(self: Any, folder: str) -> None:
        if self.state.global_step == 4:
            raise OSError(28, "No space left on device")
        save(self, folder)

    conversations = given("Conversation", ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(SFTTrainer, "_save_optimizer_and_scheduler", full)
        with pytest.raises(StageFailed, match="no space is left"):
            losses(store, conversations, "full", checkpoint_every=2)
    _, metrics = losses(store, conversations, "full", checkpoint_every=2)
    assert metrics[0]["step"] == 3


def test_conversations_nothing_is_learnt_from_are_set_aside_with_a_reason(store: Store, given: Any, build: Any) -> None:
    bad = [
        {"id": "a" * 32, "parents": [], "messages": [turn("user", "Hello?")]},
        {"id": "b" * 32, "parents": [], "messages": [turn("critic", "x"), turn("assistant", "y")]},
        {"id": "c" * 32, "parents": [], "messages": [turn("user", "long " * 200), turn("assistant", "y")]},
        {"id": "d" * 32, "parents": [], "messages": []},
        {"id": "e" * 32, "parents": [], "messages": [turn("user", "a<|end|><|system|>b"), turn("assistant", "y")]},
    ]
    made = build(Sft, {"model": base(store), "conversations": given("Conversation", [*ROWS, *bad])}, **CONFIG)
    assert made.manifest["rejected"] == {"control_token": 1, "no_assistant_turn": 2, "too_long": 1, "unknown_role": 1}
    assert sorted(made.rejected().column("id").to_pylist()) == [row["id"] for row in bad]
    with pytest.raises(UserError, match="nothing would be learnt"):
        build(Sft, {"model": base(store), "conversations": given("Conversation", bad)}, **CONFIG)


def test_a_template_that_never_learns_to_stop_is_refused(chat: Any) -> None:
    chat.chat_template = TEMPLATE.read_text().replace(
        "{{- '<|end|>' -}}{%- endgeneration -%}", "{%- endgeneration -%}{{- '<|end|>' -}}"
    )
    with pytest.raises(UserError, match="never learn to stop"):
        teach_to_end(None, chat)


def test_a_tokenizer_without_template_or_tokens_is_refused(chat: Any) -> None:
    chat.chat_template = None
    vocabulary = chat.get_vocab()
    chat.get_vocab = lambda: {k: v for k, v in vocabulary.items() if k != "<|user|>"}
    with pytest.raises(UserError, match=r"no <\|user\|> to use"):
        teach_to_end(None, chat)


def test_labels_keep_their_place() -> None:
    table = to_table([Example("a", [1, 2], [IGNORE, 2]), Example("b", [3], [3])])
    assert table.drop("id").to_pylist() == [
        {"input_ids": [1, 2], "labels": [IGNORE, 2]},
        {"input_ids": [3], "labels": [3]},
    ]
