"""`reward`: preferences or rankings -> a reward model.

From pairs, by Bradley-Terry (Ouyang et al. 2022, "InstructGPT", eq. 1): the loss of a pair is
-log sigmoid(r_chosen - r_rejected - margin), the margin as in Llama 2 (Touvron et al. 2023, eq. 2). With `soft`, the
share of annotators who agreed is the label instead of 1. An ensemble is `heads` heads on one backbone, each on its own
bootstrap sample of the pairs.

From rankings, by Plackett-Luce over whole lists (`training.reward.list_loss`), each weighted by the reliability of the
annotator who made it: as `reliability` says, or as the `preferences` made from these rankings have found it.

With `objectives` (accuracy, helpfulness, safety), each has preferences and heads of its own on the shared backbone, and
the reward is the weighted sum of what they say, each in the units of `normalise`.

Shapes: P pairs of a batch, B = 2P answers (chosen first), L lists, I items of the longest list, O objectives, H heads of
each, K = O H.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
from pydantic import Field, model_validator

from engine.errors import UserError
from engine.seeds import generator, shuffled
from engine.stage.job import Job
from engine.stage.stage import Device, NotIdentity, Stage, port
from training.hardware import memory
from training.hardware.cost import trainable_share
from training.loops import schedule, snapshot
from training.loops.checkpoint import Checkpoints
from training.loops.tracking import tracked
from training.loops.tracking_settings import ReportTo
from training.models.load import quiet, save
from training.models.lora import peft_config
from training.models.lora_settings import Lora
from training.models.padding import pad
from training.preference import pairs
from training.preference.pairs import Pair
from training.reward import list_loss as plackett_luce
from training.reward import rankings
from training.reward.model import FACTS, RewardModel, read_heads
from training.reward.rankings import Ranked
from training.reward.report import report

if TYPE_CHECKING:
    from torch import Tensor


class Reward(Stage):
    """Train a model that scores answers the way people rank them."""

    takes = {
        "model": port("Model"),
        "preferences": port("Preference", many=True, optional=True, labelled=True),
        "rankings": port("Ranking", many=True, optional=True),
    }
    gives = "RewardModel"
    random = True

    epochs: int = Field(1, ge=1, description="Passes over the pairs. More than two overfit easily.")
    batch: int = Field(32, ge=1, description="Pairs a step.")
    lr: float = Field(1e-4, gt=0)
    warmup: float = Field(
        0.05, ge=0, le=1, description="Share of the steps in which the rate rises; then it falls to 0."
    )
    weight_decay: float = Field(0.0, ge=0)
    max_length: int = Field(1024, ge=2, description="Longest prompt and answer, in tokens. Longer pairs are left out.")
    margin: bool = Field(False, description="Ask for a difference of at least the column `margin` (log-odds).")
    soft: bool = Field(False, description="The label is the column `agreement` rather than 1.")
    reliability: dict[str, float] = Field(
        {}, description="Annotator -> weight of their rankings, over what `preferences` say; 1 if not named anywhere."
    )
    objectives: dict[str, float] = Field(
        {}, description="Weight of each objective in the reward, by the name its `preferences` have in `from`."
    )
    normalise: Literal["none", "log_odds", "unit"] | None = Field(
        None,
        description="What one point of reward is: as trained; calibrated log-odds of being preferred; one standard "
        "deviation of the training answers. Log-odds with `objectives`, else as trained.",
    )
    heads: int = Field(1, ge=1, description="Size of the ensemble on the shared backbone.")
    lora: Lora | None = Field(None, description="Train an adapter and the heads instead of all weights; it is merged.")
    centre: float = Field(0.01, ge=0, description="Weight of (r_chosen + r_rejected)^2, which keeps scores near 0.")
    held_out: float = Field(0.1, ge=0, lt=1, description="Share of prompts for validation where no row says `split`.")
    checkpoint_every: Annotated[int, NotIdentity] = Field(50, ge=1, description="Steps.")
    report_to: ReportTo = "none"

    @model_validator(mode="after")
    def _whole(self) -> Reward:
        if self.lora and (not self.lora.merge or self.lora.quantize):
            raise ValueError("a reward model's adapter is merged into float weights: leave out `merge` and `quantize`")
        return self

    def forecast(self, given: dict[str, list[dict[str, Any]]], device: Device) -> dict[str, Any]:
        return memory.forecast_fine_tuning(
            given["model"][0], device, self.lora, self.max_length, self.batch,
            rows=2, methods=("full", "lora"),
        )  # fmt: skip

    def run(self, job: Job) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification

        from generators.text.prompts import load_tokenizer

        quiet()
        torch.use_deterministic_algorithms(True, warn_only=True)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        backbone = job.input("model").location
        tokenizer = load_tokenizer(backbone)
        examples, training, validation = self.examples(job, tokenizer)
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            backbone, num_labels=self.heads * max(len(self.objectives), 1), dtype=torch.float32
        )
        start_heads(model, job.derive("heads"), zero=self.heads == 1)
        # Only readers that must find the end of a padded row by themselves need it; ours knows the lengths.
        model.config.pad_token_id = tokenizer.pad_token_id
        adapted = adapt(model, self.lora, job.derive("lora")) if self.lora else None
        model.to(device).eval()  # dropout off: every score is the score
        if adapted is not None:
            job.summary(trained=round(trainable_share(model), 4))
        with tracked(job, self.report_to):
            self.fit(job, model, examples)
        if adapted is not None:
            model = adapted.merge_and_unload()

        reward = RewardModel(model, tokenizer, torch.zeros(model.config.num_labels, device=device), 1.0)
        reward.objectives = self.objectives
        raw_BK = reward.by_objective([answer for example in examples for answer in example.answers]).flatten(1)
        reward.mean_K = raw_BK.mean(0).to(device)
        temperature_O = report(job, reward, training, validation)
        self.set_scale(reward, raw_BK, temperature_O)
        setattr(model.config, FACTS, reward.facts())
        save(job, model, tokenizer)

    def set_scale(self, reward: RewardModel, raw_BK: Tensor, temperature_O: np.ndarray) -> None:
        """The units of the reward, and the temperature that then makes log-odds of it."""
        import torch

        objectives = len(temperature_O)
        how = self.normalise or ("log_odds" if self.objectives else "none")
        scale_O = {
            "none": np.ones(objectives),
            "log_odds": temperature_O,
            # of the ensemble's mean: what a single number says
            "unit": raw_BK.double().reshape(len(raw_BK), objectives, -1).mean(2).std(0, correction=0).numpy(),
        }[how]
        scale_O = np.where(scale_O > 1e-12, scale_O, 1.0)
        scale_K = torch.tensor(np.repeat(scale_O, self.heads), dtype=torch.float32)
        reward.scale_K = scale_K.to(reward.mean_K.device)
        reward.temperature = float(temperature_O[0] / scale_O[0]) if objectives == 1 else 1.0

    def examples(self, job: Job, tokenizer: Any) -> tuple[Sequence[Pair | Ranked], list[Pair], list[Pair]]:
        """What is trained on, and the same as pairs: those trained on and those held out.

        Raises:
            UserError: there are neither preferences nor rankings, or an objective has no preferences.
        """
        given = list(job.inputs.get("preferences", {}))
        if not given and not job.all("rankings"):
            raise UserError("give a reward model `preferences` (pairs) or `rankings` (whole lists) to learn from.")
        if self.objectives and (set(self.objectives) != set(given) or job.all("rankings")):
            raise UserError(
                f"`objectives` are {', '.join(self.objectives)}, and the preferences are called {', '.join(given)}: each "
                "objective needs preferences of its name, as in `preferences: {accuracy: STAGE, safety: STAGE}`."
            )
        if not job.all("rankings"):
            training, validation = pairs.load(job, "preferences", tokenizer, self.max_length, self.held_out)
            return training, training, validation
        reliability = {**rankings.reliability_in(job.all("preferences")), **self.reliability}
        if given:
            job.summary(reliability={name: round(weight, 4) for name, weight in sorted(reliability.items())})
        lists, held = rankings.load(job, "rankings", tokenizer, self.max_length, self.held_out, reliability)
        return lists, [p for one in lists for p in one.pairs()], [p for one in held for p in one.pairs()]

    def fit(self, job: Job, model: Any, training: Sequence[Pair | Ranked]) -> None:
        """Train in place, going on from the last checkpoint in scratch."""
        import torch

        steps_an_epoch = -(-len(training) // self.batch)
        steps = self.epochs * steps_an_epoch
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=self.weight_decay, betas=(0.9, 0.95))
        checkpoints = Checkpoints(job.scratch / "checkpoints")
        found = snapshot.restore(checkpoints, {"reward": model}, optimizer)
        bootstrap_PK = self.bootstrap_weights(len(training), job.derive("bootstrap"))
        if self.objectives:  # a pair counts for the heads of its own objective
            own_PO = np.array([[name == cast(Pair, one).source for name in self.objectives] for one in training])
            bootstrap_PK = (own_PO[:, :, None] * bootstrap_PK[:, None]).reshape(len(training), -1)
        for step in range(found.step if found else 0, steps):
            epoch, place = divmod(step, steps_an_epoch)
            order = shuffled(range(len(training)), job.seed, "reward", epoch)
            chosen = order[place * self.batch : (place + 1) * self.batch]
            for group in optimizer.param_groups:
                group["lr"] = self.lr * schedule.linear(step, steps, self.warmup)
            batch, weights = [training[i] for i in chosen], bootstrap_PK[chosen]
            if isinstance(batch[0], Pair):
                loss, accuracy = self.loss(model, cast(list[Pair], batch), weights)
            else:
                loss, accuracy = self.list_loss(model, cast(list[Ranked], batch), weights)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            job.metric(step + 1, loss=loss.item(), accuracy=accuracy)
            job.progress(step + 1, steps, "steps")
            if (step + 1) % self.checkpoint_every == 0 or step + 1 == steps:
                checkpoints.save(snapshot.take(step + 1, {"reward": model}, optimizer))
        checkpoints.wait()

    def loss(self, model: Any, batch: list[Pair], bootstrap_PK: np.ndarray) -> tuple[Tensor, float]:
        """The loss of one batch and the accuracy of the ensemble's mean on it."""
        import torch
        from torch.nn.functional import logsigmoid

        device = next(model.parameters()).device
        both = pad([*(pair.chosen for pair in batch), *(pair.rejected for pair in batch)], device)
        chosen_PK, rejected_PK = read_heads(model, both).chunk(2)
        margin_P = torch.tensor([pair.margin if self.margin else 0.0 for pair in batch], device=device)
        label_P = torch.tensor([pair.agreement if self.soft else 1.0 for pair in batch], device=device)
        weight_PK = torch.tensor(bootstrap_PK, dtype=torch.float32, device=device)
        weight_PK = weight_PK * torch.tensor([pair.weight for pair in batch], device=device)[:, None]
        difference_PK = chosen_PK - rejected_PK - margin_P[:, None]
        loss_PK = -(label_P[:, None] * logsigmoid(difference_PK) + (1 - label_P)[:, None] * logsigmoid(-difference_PK))
        loss_PK = loss_PK + self.centre * (chosen_PK + rejected_PK) ** 2
        loss = (weight_PK * loss_PK).sum() / weight_PK.sum().clamp(min=1e-8)
        used_PK = (weight_PK > 0) if self.objectives else torch.ones_like(weight_PK, dtype=torch.bool)
        right_P = ((chosen_PK - rejected_PK) * used_PK).sum(1) > 0
        return loss, float(right_P.float().mean())

    def list_loss(self, model: Any, lists: list[Ranked], bootstrap_LK: np.ndarray) -> tuple[Tensor, float]:
        """The loss of one batch of rankings and the share of their pairs that the ensemble's mean orders alike."""
        import torch

        device = next(model.parameters()).device
        raw_BK = read_heads(model, pad([answer for one in lists for answer in one.answers], device))
        longest = max(len(one.ranks) for one in lists)
        ranks_LI = torch.tensor([one.ranks + [0] * (longest - len(one.ranks)) for one in lists], device=device)
        present_LI = torch.tensor([[i < len(one.ranks) for i in range(longest)] for one in lists], device=device)
        scores_LIK = torch.zeros(*ranks_LI.shape, raw_BK.shape[1], device=device)
        scores_LIK = scores_LIK.masked_scatter(present_LI[..., None], raw_BK)
        weight_LK = torch.tensor(bootstrap_LK, dtype=torch.float32, device=device)
        weight_LK = weight_LK * torch.tensor([one.weight for one in lists], device=device)[:, None]
        ranked_LI1 = (ranks_LI > 0)[..., None]
        centre_LK = (scores_LIK**2 * ranked_LI1).sum(1) / ranked_LI1.sum(1)
        loss_LK = plackett_luce.nll(scores_LIK, ranks_LI) + 4 * self.centre * centre_LK  # of a pair: (2 mean)^2
        loss = (weight_LK * loss_LK).sum() / weight_LK.sum().clamp(min=1e-8)
        mean_LI = scores_LIK.detach().mean(2)
        above_LII = (ranks_LI[:, :, None] > 0) & (ranks_LI[:, :, None] < ranks_LI[:, None, :])
        agree_LII = mean_LI[:, :, None] > mean_LI[:, None, :]
        return loss, float((above_LII & agree_LII).sum() / above_LII.sum().clamp(min=1))

    def bootstrap_weights(self, pairs: int, seed: int) -> np.ndarray:
        """How often each pair counts for each head: Poisson(1), the bootstrap in the limit; 1 for a single head."""
        if self.heads == 1:
            return np.ones((pairs, 1))
        return generator(seed).poisson(1.0, size=(pairs, self.heads)).astype(np.float64)


def adapt(model: Any, lora: Lora, seed: int) -> Any:
    """Put an adapter into the model, in place, and freeze all but it and the heads; returns PEFT's view of the two."""
    import torch
    from peft import get_peft_model

    torch.manual_seed(seed % 2**31)
    config = peft_config(lora)
    config.task_type = None  # a sequence classifier's would wrap the heads
    config.exclude_modules = ["score"]
    adapted = get_peft_model(model, config)
    model.score.weight.requires_grad_(True)
    return adapted


def start_heads(model: Any, seed: int, zero: bool = True) -> None:
    """Zero for a single head: training starts from no opinion at all. Several start apart, so that they can disagree."""
    import torch

    weight_KD = model.score.weight
    with torch.no_grad():
        if zero:
            weight_KD.zero_()
        else:
            random = torch.Generator().manual_seed(seed)
            weight_KD.copy_(torch.randn(weight_KD.shape, generator=random) / weight_KD.shape[1] ** 0.5)
