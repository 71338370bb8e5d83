"""Pretraining: from token shards to a base model, in one loop that can be read from top to bottom.

Everything that decides the result is a pure function of the configuration, the seed and the step: which blocks are in a
batch (`shards.order`), the learning rate (`schedule.factor`), the initial weights. So a checkpoint needs no more than the
weights, the optimizer, the random states and the number of steps done, and a killed run goes on to the same bytes.

Shapes: B blocks of a micro-batch, T tokens of a block, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field, model_validator

from engine.errors import StageFailed, UserError
from engine.stage.drawing import Curves
from engine.stage.stage import Device, NotIdentity, Stage, port
from training.hardware import flops, memory
from training.loops.schedule import ScheduleName, factor
from training.loops.tracking import ReportTo, tracked
from training.pretrain.optim import OptimizerName
from training.pretrain.size import Family, Size, learning_rate

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from engine.stage.job import Job
    from engine.store.artifact import Artifact
    from training.pretrain.llama import Llama
    from training.pretrain.token_blocks import Shards

SEPARATOR = "<|endoftext|>"


class Pretrain(Stage):
    """Train a Llama or Qwen3 decoder from random weights."""

    takes = {"tokens": port("TokenBlock")}
    gives = "Model"
    phase = "training"
    drawings = (Curves(("loss", "validation_bpb")),)
    random = True

    family: Family = "llama"
    size: Size = Field(default_factory=Size, description="One dial, `depth`, and what overrides what follows from it.")

    steps: int | None = Field(None, ge=1, description="Optimizer steps.")
    epochs: float | None = Field(None, gt=0, description="Passes over the shards, instead of `steps`.")
    tokens_per_parameter: float = Field(20.0, gt=0, description="The horizon when neither is given.")
    batch: int = Field(16, ge=1, description="Blocks in one optimizer step, over all processes.")
    micro_batch: int | None = Field(None, ge=1, description="Blocks in memory at once; `batch` if left out.")

    optimizer: OptimizerName = "adamw"
    lr: float | None = Field(None, gt=0, description="Peak learning rate; follows from the width if left out.")
    schedule: ScheduleName = "cosine"
    warmup: int | None = Field(None, ge=0, description="Steps; a fiftieth of all if left out.")
    decay: float = Field(0.3, gt=0, le=1, description="Share of the steps in which `wsd` falls.")
    final_lr: float = Field(0.1, ge=0, le=1, description="Last learning rate as a share of the peak.")
    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = Field(0.95, ge=0, lt=1, description="Muon's.")
    clip: float = Field(1.0, gt=0, description="Greatest norm of the gradient.")

    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of matrix products. `auto`: bfloat16 where the machine has units for it."
    )
    document_mask: bool = Field(False, description="Tokens see their own document only.")
    compile: bool = Field(
        False,
        description="Use torch.compile. On a CPU it costs some 40 s once and saves a tenth to a fifth of each step.",
    )

    validation_every: Annotated[int | None, NotIdentity] = Field(None, ge=1, description="Steps; a tenth of all.")
    validation_blocks: int = Field(64, ge=1, description="At most so many blocks are validated on.")
    log_every: Annotated[int, NotIdentity] = Field(10, ge=1)
    checkpoint_every: Annotated[int, NotIdentity] = Field(100, ge=1, description="Steps.")
    keep: Annotated[int, NotIdentity] = Field(2, ge=1, description="Checkpoints kept, besides the best.")
    processes: Annotated[int | None, NotIdentity] = Field(
        None, ge=1, description="That share each batch; one for each GPU if left out. Changes rounding only."
    )
    sharding: Annotated[Literal["replicate", "shard"], NotIdentity] = Field(
        "replicate", description="`shard`: FSDP2, for models that don't fit one GPU."
    )
    prompts: Annotated[tuple[str, ...], NotIdentity] = Field(
        (), description="Continued at each validation, to be read."
    )
    report_to: ReportTo = "none"

    @model_validator(mode="after")
    def _consistent(self) -> Pretrain:
        if self.steps and self.epochs:
            raise ValueError("give `steps` or `epochs`, not both")
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"`micro_batch` ({self.micro_batch}) must divide `batch` ({self.batch})")
        if self.optimizer == "muon" and self.sharding == "shard":
            raise ValueError("`muon` needs whole matrices: use `sharding: replicate`, or `adamw`")
        return self

    def forecast(self, given: dict[str, list[dict[str, Any]]], device: Device) -> dict[str, Any]:
        (tokens,) = given["tokens"]
        vocabulary, block = tokens.get("summary", {}).get("vocab_size"), tokens.get("block")
        if not vocabulary or not block:
            return {}
        config = {"model_type": self.family, **self.size.settings(vocabulary), "max_position_embeddings": block}
        shape = memory.shape_of(config)
        assert shape is not None
        count = self.processes or 1
        needs = memory.say_pretraining(
            shape, device, self.batch // count, (self.micro_batch or self.batch) // count or 1, block,
            count if self.sharding == "shard" else 1,
        )  # fmt: skip
        return {"config": config, "needs": needs}

    def run(self, job: Job) -> None:
        import torch

        from training.loops.distributed import processes

        count = self.processes or max(1, torch.cuda.device_count())
        if self.batch % count:
            raise UserError(f"a `batch` of {self.batch} blocks can't be shared by {count} processes.")
        with tracked(job, self.report_to), processes(count, job, self.train):
            self.train(job)

    def train(self, job: Job) -> None:
        Run(self, job).train()


class Run:
    """One pretraining under way: the model, what it reads, and where it stands."""

    def __init__(self, stage: Pretrain, job: Job) -> None:
        import torch

        from training.loops.checkpoint import Checkpoints
        from training.loops.distributed import rank, spread
        from training.pretrain.llama import initial_model
        from training.pretrain.optim import build, has_bfloat16_units
        from training.pretrain.token_blocks import Shards

        self.stage, self.job = stage, job
        self.leads = rank() == 0  # who reports and writes
        artifact = job.input("tokens")
        self.shards = Shards(artifact.path / "data")
        check_tokenizer(artifact)
        self.tokenizer = load_tokenizer(artifact.path / "tokenizer")
        self.vocabulary = len(self.tokenizer)
        held_out = artifact.path / "validation"
        self.validation = Shards(held_out) if any(held_out.glob("*.arrow")) else None

        gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
        bfloat16 = stage.dtype == "bfloat16" or (stage.dtype == "auto" and has_bfloat16_units())
        pad = cast(int, self.tokenizer.pad_token_id)
        eos = cast(int, self.tokenizer.eos_token_id)
        self.config = stage.size.config(stage.family, self.vocabulary, self.shards.block, eos, pad)
        self.model = initial_model(self.config, job.derive("weights"), torch.bfloat16 if bfloat16 else torch.float32)
        self.model.to(self.device)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        spread(self.model, stage.sharding)
        self.forward: Any = torch.compile(self.model) if stage.compile else self.model

        self.steps = self._horizon()
        self.warmup = stage.warmup if stage.warmup is not None else max(1, self.steps // 50)
        self.lr = stage.lr or learning_rate(self.config)
        self.optimizers = build(self.model, stage.optimizer, self.lr, stage.weight_decay, stage.betas, stage.momentum)
        self.checkpoints = Checkpoints(job.scratch / "checkpoints", stage.keep)
        self.bytes_V = token_bytes(self.tokenizer)
        self.order_seed = job.derive("order")

    def _horizon(self) -> int:
        stage = self.stage
        if stage.steps:
            return stage.steps
        blocks = len(self.shards)
        if stage.epochs:
            return max(1, round(stage.epochs * blocks / stage.batch))
        return max(1, round(stage.tokens_per_parameter * self.parameters / (stage.batch * self.shards.block)))

    # -- the loop ----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        import torch

        from training.loops.distributed import world

        stage, job = self.stage, self.job
        torch.manual_seed(job.derive("torch"))
        start = self._resume()
        every = stage.validation_every or max(1, self.steps // 10)
        peak = flops.measured_peak(self.device, self.model.dtype) if self.leads else math.inf
        by_token = flops.by_token(cast(memory.Shape, self.config), self.shards.block)
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
            if self.validation and (last or done % every == 0):
                self._validate(done, self.validation)
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
        import torch

        from training.loops.distributed import share, sum_gradients, total, whole

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
        from training.pretrain.token_blocks import order

        return order(self.order_seed, step * self.stage.batch, self.stage.batch, len(self.shards))

    def _batch(self, shards: Shards, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Tokens, the tokens after them (the last of a block is not scored), and document numbers if they count."""
        import torch

        from training.pretrain.llama import IGNORE

        tokens = shards.tokens(indices)
        if tokens.max() >= self.vocabulary:
            worst = int(tokens.max(1).argmax())
            raise UserError(
                f"block {shards.row_ids(indices)[worst]} has the token id {tokens.max()}, but the tokenizer beside the "
                f"shards has {self.vocabulary} tokens: they come from another one. Tokenise anew."
            )
        tokens_BT = torch.from_numpy(tokens).to(self.device, non_blocking=True)
        targets_BT = torch.full_like(tokens_BT, IGNORE)
        targets_BT[:, :-1] = tokens_BT[:, 1:]
        documents = torch.from_numpy(shards.documents(indices)).to(self.device) if self.stage.document_mask else None
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
                rows = ", ".join(self.shards.row_ids(self._indices(step)))
                raise StageFailed(
                    f"at step {step + 1} the loss is {loss} and the norm of the gradient {norm} "
                    f"(learning rate {self.lr * self._factor(step):.2g}). The batch was of blocks {rows}. "
                    "A lower `lr`, a longer `warmup`, or those blocks are where to look."
                )
        return sum(losses) / len(losses), norms[-1]

    # -- what people see -----------------------------------------------------------------------------------------------

    def _validate(self, done: int, shards: Shards) -> dict[str, float]:
        nats, targets, size = evaluate(self.model, self._validation_batches(shards), self.bytes_V)
        values = {"validation_loss": nats / max(1, targets), "bits_per_byte": bits_per_byte(nats, max(1, size))}
        self._metric(done, **values)
        self.last_validation = values
        return values

    def _validation_batches(self, shards: Shards) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        count = min(len(shards), self.stage.validation_blocks)
        size = self.stage.micro_batch or self.stage.batch
        for at in range(0, count, size):
            yield self._batch(shards, list(range(at, min(count, at + size))))

    def _show(self) -> None:
        for prompt in self.stage.prompts:
            self._say(f"{prompt}▸{complete(self.model, self.tokenizer, prompt, 32)}")

    # -- what stays ----------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, done: int) -> None:
        from training.loops.checkpoint import Checkpoint, optimizer_tensors, random_state
        from training.loops.distributed import gathered

        random_tensors, facts = random_state()
        tensors = {f"model.{name}": p for name, p in self.model.named_parameters()}
        tensors |= optimizer_tensors(self.model.named_parameters(), self.optimizers)
        tensors = gathered(tensors) | random_tensors
        score = getattr(self, "last_validation", {}).get("validation_loss")
        if self.leads:
            self.checkpoints.save(Checkpoint(done, tensors, facts, score))

    def _resume(self) -> int:
        """Put back the newest whole checkpoint. Returns the number of steps done."""
        import torch

        from training.loops.checkpoint import restore_optimizers, restore_random_state
        from training.loops.distributed import split_like

        found = self.checkpoints.latest()
        if found is None:
            return 0
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(split_like(found.tensors[f"model.{name}"], parameter))
        restore_optimizers(found.tensors, self.model.named_parameters(), self.optimizers)
        restore_random_state(found.tensors, found.facts)
        return found.step

    def _finish(self) -> None:
        from training.loops.distributed import whole
        from training.loops.trl import save

        weights = {name: whole(tensor).detach().cpu() for name, tensor in self.model.state_dict().items()}
        if not self.leads:
            return
        save(self.job, to_transformers(weights, self.config), self.tokenizer)
        self.job.summary(
            parameters=self.parameters,
            steps=self.steps,
            tokens=self.steps * self.stage.batch * self.shards.block,
            **getattr(self, "last_validation", {}),
        )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside the shards; its separator ends a text and pads a batch.

    Raises:
        UserError: there is none, or it has no separator.
    """
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise UserError(f"the shards have no tokenizer beside them ({folder}): make them with the `tokenize` stage.")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if tokenizer.eos_token_id is None:
        if SEPARATOR not in tokenizer.get_vocab():
            raise UserError(f"the tokenizer in {folder} has neither an end-of-text token nor {SEPARATOR}.")
        tokenizer.eos_token = SEPARATOR
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_tokenizer(shards: Artifact) -> None:
    """See that the tokenizer beside the shards is the one they were made with.

    Raises:
        UserError: it was exchanged, so that ids would mean other texts.
    """
    from engine.store.digest import digest_file

    for name, entry in shards.manifest["files"].items():
        if name.startswith("tokenizer/") and digest_file(shards.path / name) != entry["sha256"]:
            raise UserError(
                f"{shards.path / name} is not the file that these shards were made with: another tokenizer's ids would "
                "mean other texts. Tokenise anew, or put the tokenizer of the `tokenize` stage back."
            )


def to_transformers(weights: dict[str, torch.Tensor], config: PretrainedConfig) -> Any:
    """These weights in transformers' class, in float32."""
    from transformers import AutoModelForCausalLM

    twin = AutoModelForCausalLM.from_config(config)
    twin.load_state_dict(weights)
    return twin


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """How many bytes of text each token stands for, (V,). Special tokens stand for none."""
    import json

    import numpy as np

    special = set(tokenizer.all_special_ids)
    backend = cast(Any, tokenizer).backend_tokenizer
    for index, token in backend.get_added_tokens_decoder().items():
        if token.special:
            special.add(index)
    # In a byte-level vocabulary each character of a token is one byte; otherwise the text of the token is asked for.
    byte_level = "ByteLevel" in json.dumps(json.loads(backend.to_str())["decoder"])
    sizes_V = np.zeros(len(tokenizer), np.int64)
    for token, index in tokenizer.get_vocab().items():
        if index not in special:
            sizes_V[index] = len(token) if byte_level else len(backend.decode([index]).encode())
    return sizes_V


def evaluate(
    model: Llama, batches: Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]], bytes_V: np.ndarray
) -> tuple[float, int, int]:
    """Summed cross-entropy in nats over text (special tokens are not scored), number of targets, bytes they stand for."""
    import torch

    from training.pretrain.llama import IGNORE

    table_V = torch.from_numpy(bytes_V)
    nats, targets, size = 0.0, 0, 0
    with torch.no_grad():
        for tokens_BT, targets_BT, documents_BT in batches:
            lengths_V = table_V.to(targets_BT.device)
            lengths_BT = torch.where(targets_BT == IGNORE, 0, lengths_V[targets_BT.clamp(min=0)])
            scored_BT = torch.where(lengths_BT > 0, targets_BT, IGNORE)
            nats += float(model(tokens_BT, scored_BT, documents_BT))
            targets += int((scored_BT != IGNORE).sum())
            size += int(lengths_BT.sum())
    return nats, targets, size


def bits_per_byte(nats: float, size: int) -> float:
    """Cross-entropy in bits by byte of text: comparable between tokenizers (Gao et al. 2020, arXiv:2101.00027, 3.1)."""
    return nats / (math.log(2) * size)


def complete(model: Llama, tokenizer: PreTrainedTokenizerBase, prompt: str, count: int) -> str:
    """The likeliest continuation of at most `count` tokens. Draws nothing, so training goes on as if it had not been."""
    import torch

    device = next(model.parameters()).device
    start = tokenizer.encode(prompt, add_special_tokens=False) or [cast(int, tokenizer.eos_token_id)]
    ids, context = list(start), model.config.max_position_embeddings
    with torch.no_grad():
        for _ in range(count):
            logits_1TV = model(torch.tensor([ids[-context:]], device=device))
            ids.append(int(logits_1TV[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    return cast(str, tokenizer.decode(ids[len(start) :], skip_special_tokens=True))
