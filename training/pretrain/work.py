"""Pretraining, from random weights or from a model, in one loop that can be read from top to bottom.

Everything that decides the result is a pure function of the configuration, the seed and the step: which blocks are in a
batch (`block_order`), the learning rate (`schedule.factor`), the initial weights. So a checkpoint needs no more than the
weights, the optimizer, the random states and the number of steps done, and a killed run goes on to the same bytes.

Shapes: B blocks of a micro-batch, T tokens of a block, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from engine.errors import StageFailed, UserError
from pipelines.tokenize.shards import Shards, block_order
from training.hardware import flops, memory
from training.loops.checkpoint import (
    Checkpoint,
    Checkpoints,
    optimizer_tensors,
    random_state,
    restore_optimizers,
    restore_random_state,
)
from training.loops.distributed import (
    gathered,
    rank,
    share,
    split_like,
    spread,
    sum_gradients,
    total,
    whole,
    world,
)
from training.loops.process_group import processes, there
from training.loops.schedule import factor
from training.loops.tracking import tracked
from training.models.load import save
from training.models.precision import products
from training.pretrain.continued import Stock, check_same, load_decoder, own_tokenizer, to_stock
from training.pretrain.llama import IGNORE, Llama, decoder_config, initial_model, to_transformers
from training.pretrain.measure import bits_per_byte, complete, cross_entropy
from training.pretrain.optim import build
from training.pretrain.size import learning_rate
from training.pretrain.stage import Pretrain
from training.pretrain.tokenizer import load_tokenizer, token_bytes

if TYPE_CHECKING:
    from engine.stage.job import Job


def pretrain(stage: Pretrain, job: Job) -> None:
    """Train in as many processes as the stage says, or as there are GPUs.

    Raises:
        UserError: they can't share a batch.
    """
    count = stage.processes or there()
    if stage.batch % count:
        raise UserError(f"a `batch` of {stage.batch} blocks can't be shared by {count} processes.")
    train = partial(_train, stage)
    with tracked(job, stage.report_to), processes(count, job, train, ("transformers", __name__)):
        train(job)


def _train(stage: Pretrain, job: Job) -> None:
    Pretraining(stage, job).train()


class Pretraining:
    """One pretraining under way: the model, what it reads, and where it stands."""

    def __init__(self, stage: Pretrain, job: Job) -> None:
        self.stage, self.job = stage, job
        self.leads = rank() == 0  # who reports and writes
        artifact = job.input("tokens")
        self.shards = Shards(artifact.path)
        self.tokenizer = load_tokenizer(artifact.path / "tokenizer")
        self.vocabulary = len(self.tokenizer)
        self.validation = self.shards.validation

        gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
        self.model = self._start(products(stage.dtype))
        if stage.recompute:
            self.model.recomputed()
        self.config = self.model.config
        self.model.to(self.device)
        self.retained = self._retained()
        self.parameters = sum(p.numel() for p in self.model.parameters())
        spread(self.model, stage.sharding)
        self.forward: Any = torch.compile(self.model) if stage.compile else self.model

        self.steps = self._horizon()
        share = 10 if self.source else 50  # a model that has come down needs longer to come up again
        self.warmup = stage.warmup if stage.warmup is not None else max(1, self.steps // share)
        self.lr = stage.lr or learning_rate(self.config) / (10 if self.source else 1)
        self.optimizers = build(self.model, stage.optimizer, self.lr, stage.weight_decay, stage.betas, stage.momentum)
        self.checkpoints = Checkpoints(job.scratch / "checkpoints", stage.keep)
        self.bytes_V = token_bytes(self.tokenizer)
        self.order_seed = job.derive("order")

    def _start(self, dtype: torch.dtype) -> Llama | Stock:
        """The model as training begins with it: random weights, or those of the one on the port `model`."""
        stage, job = self.stage, self.job
        self.source = job.maybe("model")
        if self.source is None:
            pad = cast(int, self.tokenizer.pad_token_id)
            eos = cast(int, self.tokenizer.eos_token_id)
            config = decoder_config(stage.size, stage.family, self.vocabulary, self.shards.block, eos, pad)
            return initial_model(config, job.derive("weights"), dtype)
        stage.check_shape()
        self.tokenizer = own_tokenizer(self.source, job.input("tokens"), self.tokenizer)
        return load_decoder(self.source, dtype, self.shards.block, stage.document_mask)

    def _retained(self) -> Shards | None:
        """Blocks of the text that the model has read before; held-out ones where there are some."""
        artifact = self.job.maybe("retained")
        if artifact is None:
            return None
        check_same(
            self.tokenizer, load_tokenizer(artifact.path / "tokenizer"), f"the model and `retained`, {artifact.name},"
        )
        shards = Shards(artifact.path)
        return shards.validation or shards

    def _horizon(self) -> int:
        stage = self.stage
        if stage.steps:
            return stage.steps
        blocks = len(self.shards)
        if stage.epochs or self.source:
            return max(1, round((stage.epochs or 1) * blocks / stage.batch))
        return max(1, round(stage.tokens_per_parameter * self.parameters / (stage.batch * self.shards.block)))

    # -- the loop ----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        stage, job = self.stage, self.job
        torch.manual_seed(job.derive("torch"))
        self.before = self._before()
        start = self._resume()
        every = stage.validation_every or max(1, self.steps // 10)
        peak = flops.measured_peak(self.device, self.model.dtype) if self.leads else math.inf
        shape = memory.shape_of(self.config.to_dict())
        by_token = flops.by_token(shape, self.shards.block) if shape else 6 * self.parameters
        self._say(
            f"{self.parameters:,} parameters, {len(self.shards):,} blocks of {self.shards.block} tokens, "
            f"{self.steps:,} steps of {stage.batch} blocks" + (f", from step {start:,}" if start else "")
        )
        self._say(f"mfu is taken against {peak / 1e12:.2f} TFLOP/s, measured in {str(self.model.dtype)[6:]} products")
        window: list[tuple[int, torch.Tensor, torch.Tensor]] = []  # step, loss, gradient norm; read when it is logged
        clock, since = time.monotonic(), start
        for step in range(start, self.steps):
            window.append((step, *self._step(step)))
            done = step + 1
            last, saves = done == self.steps, done % stage.checkpoint_every == 0
            if last or saves or done % stage.log_every == 0:
                loss, norm = self._read(window)
                rate = (done - since) * stage.batch * self.shards.block / (time.monotonic() - clock)
                self._metric(
                    done, loss=loss, grad_norm=norm, lr=self.lr * self._factor(step), tokens_per_s=rate,
                    mfu=rate * by_token / world() / peak, memory_gib=flops.peak_memory(self.device) / 2**30,
                )  # fmt: skip
                window, clock, since = [], time.monotonic(), done
            if self.leads:
                job.progress(done, self.steps, "steps")
            if last or done % every == 0:
                self._validate(done)
            if not last and done % every == 0:
                self._show()
            if saves and not last:
                self._save_checkpoint(done)
        self.checkpoints.wait()
        self._finish()

    def _say(self, text: str) -> None:
        if self.leads:
            self.job.say(text)

    def _metric(self, step: int, **values: float) -> None:
        if self.leads:
            self.job.metric(step, **values)

    def _step(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step. Returns the mean loss in nats a token and the norm of the gradient, not yet read."""
        stage = self.stage
        indices = share(self._indices(step))
        size = stage.micro_batch or stage.batch
        scored = stage.batch * (self.shards.block - 1)
        summed = torch.zeros((), device=self.device)
        for at in range(0, len(indices), size):
            tokens_BT, targets_BT, documents_BT = self._batch(self.shards, indices[at : at + size])
            loss = self.forward(tokens_BT, targets_BT, documents_BT) / scored
            loss.backward()
            summed += loss.detach()
        sum_gradients(self.model)
        norm = whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), stage.clip))
        rate = self.lr * self._factor(step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return total(summed), norm

    def _factor(self, step: int) -> float:
        stage = self.stage
        return factor(step, self.steps, stage.schedule, self.warmup, stage.decay, stage.final_lr)

    def _indices(self, step: int) -> list[int]:
        return block_order(self.order_seed, step * self.stage.batch, self.stage.batch, len(self.shards))

    def _batch(self, shards: Shards, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Tokens, the tokens after them (the last of a block is not scored), and document numbers if they count."""
        tokens = shards.tokens_BT(indices)
        if tokens.max() >= self.vocabulary:
            worst = int(tokens.max(1).argmax())
            raise UserError(
                f"block {shards.row_id(indices[worst])} has the token id {tokens.max()}, but the tokenizer beside the "
                f"shards has {self.vocabulary} tokens: they come from another one. Tokenise anew."
            )
        tokens_BT = torch.from_numpy(tokens).to(self.device, non_blocking=True)
        targets_BT = torch.full_like(tokens_BT, IGNORE)
        targets_BT[:, :-1] = tokens_BT[:, 1:]
        documents = torch.from_numpy(shards.documents_BT(indices)).to(self.device) if self.stage.document_mask else None
        return tokens_BT, targets_BT, documents

    def _read(self, window: list[tuple[int, torch.Tensor, torch.Tensor]]) -> tuple[float, float]:
        """Mean loss and last gradient norm of some steps.

        Raises:
            StageFailed: one of them is not a number.
        """
        losses = [float(loss) for _, loss, _ in window]
        norms = [float(norm) for _, _, norm in window]
        for (step, _, _), loss, norm in zip(window, losses, norms, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                rows = ", ".join(map(self.shards.row_id, self._indices(step)))
                raise StageFailed(
                    f"at step {step + 1} the loss is {loss} and the norm of the gradient {norm} "
                    f"(learning rate {self.lr * self._factor(step):.2g}). The batch was of blocks {rows}. "
                    "A lower `lr`, a longer `warmup`, or those blocks are where to look."
                )
        return sum(losses) / len(losses), norms[-1]

    # -- what people see -----------------------------------------------------------------------------------------------

    def _before(self) -> dict[str, float]:
        """How well a model that exists foresees both texts, before it goes on (or is put back where a killed run left it)."""
        if not self.source:
            return {}
        values = self._measure()
        if values:
            self._metric(0, **values)
        return values

    def _validate(self, done: int) -> None:
        self.last_validation = self._measure()
        if self.last_validation:
            self._metric(done, **self.last_validation)

    def _measure(self) -> dict[str, float]:
        """Nats a token and bits a byte of held-out text of the new kind, and bits a byte of the old."""
        values: dict[str, float] = {}
        for name, shards in (("", self.validation), ("retained_", self.retained)):
            if shards is not None:
                nats, targets, size = cross_entropy(self.model, self._validation_batches(shards), self.bytes_V)
                if not name:
                    values["validation_loss"] = nats / max(1, targets)
                values[f"{name}bits_per_byte"] = bits_per_byte(nats, max(1, size))
        return values

    def _validation_batches(self, shards: Shards) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        count = min(len(shards), self.stage.validation_blocks)
        size = self.stage.micro_batch or self.stage.batch
        for at in range(0, count, size):
            yield self._batch(shards, range(at, min(count, at + size)))

    def _show(self) -> None:
        for prompt in self.stage.prompts:
            self._say(f"{prompt}▸{complete(self.model, self.tokenizer, prompt, 32)}")

    # -- what stays ----------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, done: int) -> None:
        random_tensors, facts = random_state()
        tensors = {f"model.{name}": p for name, p in self.model.named_parameters()}
        tensors |= optimizer_tensors(self.model.named_parameters(), self.optimizers)
        tensors = gathered(tensors) | random_tensors
        score = getattr(self, "last_validation", {}).get("validation_loss")
        if self.leads:
            self.checkpoints.save(Checkpoint(done, tensors, facts, score))

    def _resume(self) -> int:
        """Put back the newest whole checkpoint. Returns the number of steps done."""
        last = self.checkpoints.latest()
        if last is None:
            return 0
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(split_like(last.tensors[f"model.{name}"], parameter))
        restore_optimizers(last.tensors, self.model.named_parameters(), self.optimizers)
        restore_random_state(last.tensors, last.facts)
        return last.step

    def _finish(self) -> None:
        weights = {name: whole(tensor).detach().cpu() for name, tensor in self.model.state_dict().items()}
        if not self.leads:
            return
        model = to_stock(weights, self.config, self.source) if self.source else to_transformers(weights, self.config)
        save(self.job, model, self.tokenizer)
        after = getattr(self, "last_validation", {})
        self.job.summary(
            parameters=self.parameters,
            steps=self.steps,
            tokens=self.steps * self.stage.batch * self.shards.block,
            **after,
            **{f"{name}_before": value for name, value in self.before.items()},
        )
        for name, text in (("bits_per_byte", "the new text"), ("retained_bits_per_byte", "the old text")):
            if name in self.before:
                change = after[name] - self.before[name]
                self._say(
                    f"Bits a byte of {text}: {self.before[name]:.3f} before, {after[name]:.3f} after ({change:+.3f})."
                )
