"""Training a reward model, and measuring what came of it.

Shapes: P pairs or rankings that are trained on, B their answers, O objectives, H heads of each, K = O H.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from engine.errors import UserError
from engine.plan.model_folder import loading
from engine.seeds import generator, shuffled
from generators.text.prompts import load_tokenizer
from training.hardware.cost import trainable_share
from training.hardware.flops import peak_memory
from training.loops import schedule, snapshot
from training.loops.checkpoint import Checkpoints
from training.loops.clock import Clock
from training.loops.distributed import (
    dealt,
    from_lead,
    put_together,
    rank,
    spread,
    sum_gradients,
    totals,
    world,
)
from training.loops.passes import bound, groups, recomputes
from training.loops.process_group import share_work
from training.loops.tracking import tracked
from training.models.load import base_dtype, own_dtype, quiet, save
from training.models.precision import autocast, products, recompute_layers
from training.preference import pairs
from training.preference.pairs import Pair
from training.reward import rankings
from training.reward.losses import pair_loss, ranking_loss, weights
from training.reward.model import FACTS, Heads, RewardModel
from training.reward.rankings import Ranked
from training.reward.report import report
from training.reward.reward_stage import Reward

if TYPE_CHECKING:
    from engine.stage.job import Job
    from training.models.lora_settings import Lora


def train_reward(stage: Reward, job: Job) -> None:
    share_work(stage, job, train_together, stage.batch, ("transformers", __name__))


def train_together(stage: Reward, job: Job) -> None:
    """What each process does."""
    quiet()
    torch.use_deterministic_algorithms(True, warn_only=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone, width = job.input("model").location, products(stage.dtype)
    tokenizer = load_tokenizer(backbone)
    examples, training, validation = from_lead(lambda: load_examples(stage, job, tokenizer))
    learner, adapted = untrained(stage, job, tokenizer, device)
    if recomputes(stage):
        recompute_layers(learner)
    if adapted is not None:
        job.summary(trained=round(trainable_share(learner), 4))
    with tracked(job, stage.report_to):
        fit(stage, job, learner, examples)

    def again() -> Any:
        nonlocal adapted
        whole, adapted = untrained(stage, job, tokenizer, device)
        return whole

    model: Any = put_together(learner, again)
    if rank():
        return
    own = own_dtype(backbone, job)
    if adapted is not None:
        from training.models.lora import merged_in

        model = merged_in(adapted, own)
    model.to(own)
    if width == torch.float32:  # what is measured is what is saved, in the products that it was trained with
        model.float()

    reward = RewardModel(model, tokenizer, torch.zeros(model.config.num_labels, device=device), 1.0)
    reward.objectives = stage.objectives
    with autocast(device, width):
        raw_BK = reward.by_objective([answer for example in examples for answer in example.answers]).flatten(1)
        reward.mean_K = raw_BK.mean(0).to(device)
        temperature_O = report(job, reward, training, validation)
    how = stage.normalise or ("log_odds" if stage.objectives else "none")
    set_scale(reward, raw_BK, temperature_O, how, stage.heads)
    setattr(model.config, FACTS, reward.facts())
    save(job, model.to(own), tokenizer)


def untrained(stage: Reward, job: Job, tokenizer: Any, device: torch.device) -> tuple[Any, Any]:
    """The model as training begins with it, and PEFT's view of it, where an adapter is trained."""
    backbone = job.input("model").location
    with loading(backbone):
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            backbone,
            num_labels=stage.heads * max(len(stage.objectives), 1),
            dtype=base_dtype(backbone, job, stage.lora, products(stage.dtype)),
            trust_remote_code=False,
        )
    model.score.float()
    start_heads(model, job.derive("heads"), zero=stage.heads == 1)
    # Only readers that must find the end of a padded row by themselves need it; ours knows the lengths.
    model.config.pad_token_id = tokenizer.pad_token_id
    adapted = adapt(model, stage.lora, job.derive("lora")) if stage.lora else None
    model.to(device).eval()  # dropout off: every score is the score
    return model, adapted


def set_scale(reward: RewardModel, raw_BK: Tensor, temperature_O: np.ndarray, how: str, heads: int) -> None:
    """Set the units of the reward, and the temperature that then makes log-odds of it.

    Args:
        raw_BK: scores of the training answers, before they are centred.
        how: as `normalise` of the stage: `none`, `log_odds` or `unit`.
        heads: of each objective.
    """
    objectives = len(temperature_O)
    scale_O = {
        "none": np.ones(objectives),
        "log_odds": temperature_O,
        # of the ensemble's mean: what a single number says
        "unit": raw_BK.double().reshape(len(raw_BK), objectives, -1).mean(2).std(0, correction=0).numpy(),
    }[how]
    scale_O = np.where(scale_O > 1e-12, scale_O, 1.0)
    scale_K = torch.tensor(np.repeat(scale_O, heads), dtype=torch.float32)
    reward.scale_K = scale_K.to(reward.mean_K.device)
    reward.temperature = float(temperature_O[0] / scale_O[0]) if objectives == 1 else 1.0


def load_examples(stage: Reward, job: Job, tokenizer: Any) -> tuple[Sequence[Pair | Ranked], list[Pair], list[Pair]]:
    """What is trained on, and the same as pairs: those trained on and those held out.

    Raises:
        UserError: there are neither preferences nor rankings, or an objective has no preferences.
    """
    labels = list(job.inputs.get("preferences", {}))
    if not labels and not job.all("rankings"):
        raise UserError("give a reward model `preferences` (pairs) or `rankings` (whole lists) to learn from.")
    if stage.objectives and (set(stage.objectives) != set(labels) or job.all("rankings")):
        raise UserError(
            f"`objectives` are {', '.join(stage.objectives)}, and the preferences are called {', '.join(labels)}: each "
            "objective needs preferences of its name, as in `preferences: {accuracy: STAGE, safety: STAGE}`."
        )
    if not job.all("rankings"):
        training, validation = pairs.load(job, "preferences", tokenizer, stage.max_length, stage.held_out)
        return training, training, validation
    reliability = {**rankings.reliability_in(job.all("preferences")), **stage.reliability}
    if labels:
        job.summary(reliability={name: round(weight, 4) for name, weight in sorted(reliability.items())})
    lists, held = rankings.load(job, "rankings", tokenizer, stage.max_length, stage.held_out, reliability)
    return lists, [p for one in lists for p in one.pairs()], [p for one in held for p in one.pairs()]


def fit(stage: Reward, job: Job, model: Any, training: Sequence[Pair | Ranked]) -> None:
    """Train in place, going on from the last checkpoint in scratch."""
    steps_an_epoch = -(-len(training) // stage.batch)
    steps = stage.epochs * steps_an_epoch
    heads = Heads(model)
    spread(heads, stage.sharding)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=stage.lr, weight_decay=stage.weight_decay, betas=(0.9, 0.95))
    checkpoints = Checkpoints(job.scratch / "checkpoints")
    last = snapshot.restore(checkpoints, {"reward": model}, optimizer)
    bootstrap_PK = bootstrap_weights(len(training), stage.heads, job.derive("bootstrap"))
    if stage.objectives:  # a pair counts for the heads of its own objective
        own_PO = np.array([[name == cast(Pair, one).source for name in stage.objectives] for one in training])
        bootstrap_PK = (own_PO[:, :, None] * bootstrap_PK[:, None]).reshape(len(training), -1)
    device = next(model.parameters()).device
    tokens, clock = bound(stage, model.config), Clock()
    for step in range(last.step if last else 0, steps):
        epoch, place = divmod(step, steps_an_epoch)
        order = shuffled(range(len(training)), job.seed, "reward", epoch)
        chosen = order[place * stage.batch : (place + 1) * stage.batch]
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * schedule.linear(step, steps, stage.warmup)
        batch = [training[i] for i in chosen]
        optimizer.zero_grad()
        loss, accuracy = learn(stage, heads, batch, weights(batch, bootstrap_PK[chosen]), tokens)
        sum_gradients(model)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        job.metric(step + 1, loss=loss, accuracy=accuracy, **clock.read(), memory_gib=peak_memory(device) / 2**30)
        job.progress(step + 1, steps, "steps")
        if (step + 1) % stage.checkpoint_every == 0 or step + 1 == steps:
            checkpoint = snapshot.take(step + 1, {"reward": model}, optimizer)
            if rank() == 0:
                checkpoints.save(checkpoint)
    checkpoints.wait()


def learn(
    stage: Reward, heads: Heads, batch: Sequence[Pair | Ranked], weight_BK: Tensor, tokens: int
) -> tuple[float, float]:
    """Add the gradient of this process's part of a batch's loss, pass by pass; gives the loss of all of it, and the share of its
    pairs that is ordered as people did.

    Args:
        tokens: of a pass at most, unless `micro_batch` says how many examples it has.
    """
    whole = weight_BK.sum().clamp(min=1e-8)
    device = next(heads.parameters()).device
    found = {"loss": 0.0, "right": 0.0, "compared": 0.0}
    lengths = [max(map(len, one.answers)) for one in batch]
    parts = list(groups(lengths, tokens, stage.micro_batch, max(len(one.answers) for one in batch), world()))
    for number, counts in dealt(len(parts)):
        part = parts[number]
        of = [batch[i] for i in part]
        with autocast(device, products(stage.dtype)):
            learnt = (
                pair_loss(stage, heads, cast(list[Pair], of), weight_BK[part])
                if isinstance(of[0], Pair)
                else ranking_loss(stage, heads, cast(list[Ranked], of), weight_BK[part])
            )
        loss = counts * learnt.loss / whole.to(device)
        loss.backward()
        found["loss"] += loss.item()
        found["right"] += counts * learnt.right
        found["compared"] += counts * learnt.compared
    found = totals(found)
    return found["loss"], found["right"] / max(found["compared"], 1.0)


def bootstrap_weights(pairs: int, heads: int, seed: int) -> np.ndarray:
    """How often each pair counts for each head: Poisson(1), the bootstrap in the limit; 1 for a single head."""
    if heads == 1:
        return np.ones((pairs, 1))
    return generator(seed).poisson(1.0, size=(pairs, heads)).astype(np.float64)


def adapt(model: Any, lora: Lora, seed: int) -> Any:
    """Put an adapter into the model, in place, and freeze all but it and the heads; returns PEFT's view of the two."""
    # PEFT takes seconds to import, and few reward models are adapters.
    from peft import get_peft_model

    from training.models.lora import peft_config

    torch.manual_seed(seed % 2**31)
    config = peft_config(lora)
    config.task_type = None  # a sequence classifier's would wrap the heads
    config.exclude_modules = ["score"]
    adapted = get_peft_model(model, config)
    model.score.weight.requires_grad_(True)
    return adapted


def start_heads(model: Any, seed: int, zero: bool = True) -> None:
    """Zero for a single head: training starts from no opinion at all. Several start apart, so that they can disagree."""
    weight_KD = model.score.weight
    with torch.no_grad():
        if zero:
            weight_KD.zero_()
        else:
            random = torch.Generator().manual_seed(seed)
            weight_KD.copy_(torch.randn(weight_KD.shape, generator=random) / weight_KD.shape[1] ** 0.5)
