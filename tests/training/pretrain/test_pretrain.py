"""Pretraining: exact resume, exact accumulation, closed forms, and a result that others can load."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from engine.errors import Damaged, StageFailed, UserError
from engine.stage.job import Job
from engine.store.store import Store
from tests.training import killed
from tests.training.tiny import PRETRAIN as CONFIG
from tests.training.tiny import TEXT, blocks, tokenizer
from training.pretrain.llama import decoder_config, initial_model
from training.pretrain.measure import bits_per_byte, cross_entropy
from training.pretrain.size import Size
from training.pretrain.stage import Pretrain
from training.pretrain.tokenizer import token_bytes
from training.pretrain.work import Pretraining


def job_for(store: Store, stage: Pretrain, tokens: Any, name: str = "pretrain-test") -> Job:
    return Job(store, name, "Model", {"tokens": {"tokens": tokens}}, stage.seed or 0)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_the_result_loads_as_a_transformers_model_and_has_learnt(store: Store, build: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = build(Pretrain, {"tokens": blocks(store)}, **{**CONFIG, "steps": 60})
    model = AutoModelForCausalLM.from_pretrained(made.location)
    tokens = AutoTokenizer.from_pretrained(made.location)
    assert tokens.eos_token == "<|endoftext|>"
    assert model.generation_config.eos_token_id == model.generation_config.pad_token_id == tokens.eos_token_id
    ids = torch.tensor([[tokens.eos_token_id, *tokens.encode("The capital of France is")]])
    answer = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    assert tokens.decode(answer).startswith(" Paris")

    summary = made.manifest["summary"]
    assert summary["parameters"] == sum(p.numel() for p in model.parameters())
    # What the stage says about held-out blocks is what transformers finds there.
    rows = np.concatenate([made_rows for made_rows in held_out(blocks(store).path)])
    targets = torch.from_numpy(rows[:, 1:])
    with torch.no_grad():
        nats = torch.nn.functional.cross_entropy(
            model(torch.from_numpy(rows)).logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="none"
        )
    text = targets.flatten() >= 5  # not a special token
    size = sum(len(tokens.decode([i]).encode()) for i in targets.flatten()[text].tolist())
    assert summary["validation_loss"] == pytest.approx(float(nats[text].mean()), rel=1e-4)
    assert summary["bits_per_byte"] == pytest.approx(float(nats[text].sum()) / math.log(2) / size, rel=1e-4)


def held_out(folder: Path) -> list[np.ndarray]:
    import pyarrow as pa

    table = pa.ipc.open_file(pa.memory_map(str(folder / "validation/00000.arrow"))).read_all()
    return [np.array(table.column("tokens").to_pylist())]


def test_bits_per_byte_of_a_uniform_model_is_log2_of_the_vocabulary_per_token() -> None:
    made = tokenizer()
    config = decoder_config(Size(depth=1, width=32, heads=2), "llama", len(made), 64, 0, 0)
    model = initial_model(config, 0, torch.float32)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    ids = made.encode(TEXT)
    tokens_BT = torch.tensor([ids])
    targets_BT = torch.tensor([[*ids[1:], 0]])  # the last is the separator: no text
    nats, count, size = cross_entropy(model, iter([(tokens_BT, targets_BT, None)]), token_bytes(made))
    assert count == len(ids) - 1 and size == len(made.decode(ids[1:]).encode())
    assert bits_per_byte(nats, size) == pytest.approx(count * math.log2(len(made)) / size, rel=1e-6)


def test_bytes_of_tokens_add_up_to_the_text() -> None:
    made = tokenizer()
    text = "naïve 東京 🙂\n\ttab"
    assert token_bytes(made)[made.encode(text)].sum() == len(text.encode())
    assert token_bytes(made)[:5].tolist() == [0] * 5


def test_one_batch_of_four_is_four_of_one(store: Store) -> None:
    tokens = blocks(store)
    grads: list[list[torch.Tensor]] = []
    for micro in (4, 1):
        stage = Pretrain(**CONFIG, micro_batch=micro, clip=1e9)
        run = Pretraining(stage, job_for(store, stage, tokens))
        kept: list[torch.Tensor] = []
        run.optimizers[0].register_step_pre_hook(
            lambda optimizer, *_, kept=kept: kept.extend(
                p.grad.clone() for group in optimizer.param_groups for p in group["params"]
            )
        )
        loss, norm = run._step(0)
        assert math.isfinite(float(loss))
        grads.append([norm, loss, *kept])
    for one, four in zip(*grads, strict=True):
        torch.testing.assert_close(one, four, atol=1e-6, rtol=1e-5)


def test_the_first_loss_is_that_of_a_guess(store: Store) -> None:
    stage = Pretrain(**CONFIG)
    run = Pretraining(stage, job_for(store, stage, blocks(store)))
    loss, _ = run._step(0)
    assert float(loss) == pytest.approx(math.log(run.vocabulary), rel=0.02)


@pytest.mark.parametrize(
    "extra", [{}, {"optimizer": "normuon", "schedule": "wsd", "document_mask": True}], ids=["adamw", "normuon"]
)
def test_a_run_that_stops_at_every_checkpoint_ends_with_the_same_bytes(
    store: Store, build: Any, tmp_path: Path, monkeypatch: Any, extra: dict[str, Any]
) -> None:
    straight = build(Pretrain, {"tokens": blocks(store)}, **CONFIG, **extra)

    other = Store(str(tmp_path / "other"))
    tokens = blocks(other)
    stage = Pretrain(**CONFIG, **extra, checkpoint_every=3, keep=1)
    job = job_for(other, stage, tokens)
    step_of = Pretraining._step
    for stop in (4, 7, 10):  # one step after a checkpoint: that step is lost

        def interrupted(self: Pretraining, step: int, stop: int = stop) -> Any:
            if step == stop:
                raise KeyboardInterrupt
            return step_of(self, step)

        with monkeypatch.context() as patch:
            patch.setattr(Pretraining, "_step", interrupted)
            run = Pretraining(stage, job)
            with pytest.raises(KeyboardInterrupt):
                run.train()
            run.checkpoints.wait()
    done: list[int] = []
    monkeypatch.setattr(Pretraining, "_step", lambda self, step: (done.append(step), step_of(self, step))[1])
    stage.run(job)
    assert done == [9, 10, 11]
    ours, truth = weights(job.output), weights(straight.path)
    assert all(torch.equal(ours[name], truth[name]) for name in truth) and ours.keys() == truth.keys()


def test_ten_times_kill_9_and_resume_give_the_same_digest(store: Store, tmp_path: Path) -> None:
    made = blocks(store)
    spec = {
        "store": store.url,
        "stage": "training.pretrain.stage:Pretrain",
        "config": {**CONFIG, "steps": 30, "checkpoint_every": 2, "log_every": 1},
        "inputs": {"tokens": {"t": ["", made.id]}},
    }
    for step in sorted(
        random.Random(0).sample(range(3, 30), 10)
    ):  # of two that are near, the later kill comes after a resume
        killed.start(spec, tmp_path, kill_at=step)
    resumed = killed.start(spec, tmp_path, kill_at=None)
    whole = killed.start({**spec, "store": killed.another_store(store, made, tmp_path)}, tmp_path, kill_at=None)
    assert resumed is not None and whole is not None
    assert resumed.id == whole.id and resumed.digest == whole.digest


def test_a_loss_that_is_no_number_stops_and_names_the_blocks(store: Store) -> None:
    tokens = blocks(store)
    stage = Pretrain(**{**CONFIG, "checkpoint_every": 3})
    run = Pretraining(stage, job_for(store, stage, tokens))
    step_of = run._step

    def spoilt(step: int) -> Any:
        if step == 4:
            run.model.model.norm.weight.data.fill_(float("nan"))
        return step_of(step)

    run._step = spoilt  # type: ignore[method-assign]
    with pytest.raises(StageFailed, match="at step 5 the loss is nan") as caught:
        run.train()
    assert all(row in str(caught.value) for row in map(run.shards.row_id, run._indices(4)))
    run.checkpoints.wait()
    last = run.checkpoints.latest()
    assert last is not None and last.step == 3 and torch.isfinite(last.tensors["model.model.norm.weight"]).all()


def test_shards_beside_another_tokenizer_are_refused(store: Store) -> None:
    tokens = blocks(store)
    file = tokens.path / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text().replace('"Ġcapital"', '"Ġcapitol"'))
    stage = Pretrain(**CONFIG)
    with pytest.raises(Damaged, match=r"tokenizer/tokenizer\.json is damaged"):
        stage.run(job_for(store, stage, tokens))


def test_an_id_beyond_the_vocabulary_is_named(store: Store) -> None:
    stage = Pretrain(**{**CONFIG, "batch": 24})
    with pytest.raises(UserError, match=r"block [0-9a-f]{32} has the token id \d+, but the tokenizer"):
        stage.run(job_for(store, stage, blocks(store, beyond=True)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 1, "epochs": 1},
        {"batch": 4, "micro_batch": 3},
        {"optimiser": "adamw"},
        {"size": {"depth": 0}},
    ],
    ids=str,
)
def test_a_wrong_configuration_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Pretrain(**wrong)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(UserError, match="Set `heads`"):
        decoder_config(Size(depth=2, width=32, heads=3), "llama", 10, 16, 0, 0)


def test_one_dial_sets_the_shape() -> None:
    config = decoder_config(Size(depth=12), "llama", 50_000, 1024, 0, 0)
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (768, 12, 2048)


def test_only_what_changes_bytes_is_identity() -> None:
    plain = Pretrain(**CONFIG).identity()
    same = Pretrain(**CONFIG, checkpoint_every=7, log_every=3, keep=5, prompts=("a",), validation_every=2)
    assert same.identity() == plain
    assert Pretrain(**{**CONFIG, "lr": 0.02}).identity() != plain
