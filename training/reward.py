"""`reward`: preferences or rankings -> a reward model.

From pairs, by Bradley-Terry (Ouyang et al. 2022, "InstructGPT", eq. 1): the loss of a pair is -log sigmoid(r_chosen - r_rejected - margin), the margin as in Llama 2 (Touvron et al. 2023,
eq. 2). With `soft`, the share of annotators who agreed is the label instead of 1. An ensemble is `heads` heads on one
backbone, each on its own bootstrap sample of the pairs.

From rankings, by Plackett-Luce over whole lists (`training.plackett_luce`), each weighted by the reliability of the
annotator who made it.

Shapes: P pairs of a batch, B = 2P answers (chosen first), L lists, I items of the longest list, K heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np
from pydantic import Field

from engine.errors import UserError
from engine.job import Job
from engine.seeds import generator, shuffled
from engine.stage import NotIdentity, Stage, port
from training import bootstrap, calibration, pairs, plackett_luce, rankings, schedule, snapshot
from training.answers import pad
from training.checkpoint import Checkpoints
from training.pairs import Pair
from training.rankings import Ranked
from training.reward_model import FACTS, RewardModel, read_heads
from training.trl_stage import quiet, save

if TYPE_CHECKING:
    from torch import Tensor


class Reward(Stage):
    """Train a model that scores answers the way people rank them."""

    takes = {
        "model": port("Model"),
        "preferences": port("Preference", many=True, optional=True),
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
    reliability: dict[str, float] = Field({}, description="Annotator -> weight of their rankings; 1 if not named.")
    heads: int = Field(1, ge=1, description="Size of the ensemble on the shared backbone.")
    centre: float = Field(0.01, ge=0, description="Weight of (r_chosen + r_rejected)^2, which keeps scores near 0.")
    held_out: float = Field(0.1, ge=0, lt=1, description="Share of prompts for validation where no row says `split`.")
    checkpoint_every: Annotated[int, NotIdentity] = Field(50, ge=1, description="Steps.")

    def run(self, job: Job) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification

        from generators.prompting import load_tokenizer

        quiet()
        torch.use_deterministic_algorithms(True, warn_only=True)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        backbone = job.input("model").location
        tokenizer = load_tokenizer(backbone)
        examples, training, validation = self.examples(job, tokenizer)
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            backbone, num_labels=self.heads, dtype=torch.float32
        )
        start_heads(model, job.derive("heads"))
        # Only readers that must find the end of a padded row by themselves need it; ours knows the lengths.
        model.config.pad_token_id = tokenizer.pad_token_id
        model.to(device).eval()  # dropout off: every score is the score
        self.fit(job, model, examples)

        reward = RewardModel(model, tokenizer, torch.zeros(self.heads, device=device), 1.0)
        raw_BK = reward.heads([answer for example in examples for answer in example.answers])
        reward.mean_K = raw_BK.mean(0).to(device)
        temperature = report(job, reward, training, validation)
        setattr(model.config, FACTS, {"mean": raw_BK.mean(0).tolist(), "temperature": temperature})
        save(job, model, tokenizer)

    def examples(self, job: Job, tokenizer: Any) -> tuple[Sequence[Pair | Ranked], list[Pair], list[Pair]]:
        """What is trained on, and the same as pairs: those trained on and those held out.

        Raises:
            UserError: there are neither preferences nor rankings, or both.
        """
        if bool(job.all("preferences")) == bool(job.all("rankings")):
            raise UserError(
                "give a reward model either `preferences` (pairs) or `rankings` (whole lists) to learn from."
            )
        if job.all("preferences"):
            training, validation = pairs.load(job, "preferences", tokenizer, self.max_length, self.held_out)
            return training, training, validation
        lists, held = rankings.load(job, "rankings", tokenizer, self.max_length, self.held_out, self.reliability)
        return lists, [p for one in lists for p in one.pairs()], [p for one in held for p in one.pairs()]

    def fit(self, job: Job, model: Any, training: Sequence[Pair | Ranked]) -> None:
        """Train in place, going on from the last checkpoint in scratch."""
        import torch

        steps_an_epoch = -(-len(training) // self.batch)
        steps = self.epochs * steps_an_epoch
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=self.weight_decay, betas=(0.9, 0.95))
        checkpoints = Checkpoints(job.scratch / "checkpoints")
        found = snapshot.restore(checkpoints, {"reward": model}, optimizer)
        bootstrap_PK = self.bootstrap_weights(len(training), job.derive("bootstrap"))
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
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
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
        return loss, float((chosen_PK.mean(1) > rejected_PK.mean(1)).float().mean())

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


def start_heads(model: Any, seed: int) -> None:
    """Zero for a single head: training starts from no opinion at all. Several start apart, so that they can disagree."""
    import torch

    weight_KD = model.score.weight
    with torch.no_grad():
        if len(weight_KD) == 1:
            weight_KD.zero_()
        else:
            random = torch.Generator().manual_seed(seed)
            weight_KD.copy_(torch.randn(weight_KD.shape, generator=random) / weight_KD.shape[1] ** 0.5)


def report(job: Job, reward: RewardModel, training: list[Pair], validation: list[Pair]) -> float:
    """Measure the model on held-out prompts, put it into the summary, and return the calibrated temperature."""
    if not validation:
        job.say("No pair is held out, so the accuracy of this reward model is unknown.")
        return 1.0
    scores_BK = reward.heads([answer for pair in validation for answer in (pair.chosen, pair.rejected)])
    scores = scores_BK.mean(1).double().numpy()
    difference = scores[0::2] - scores[1::2]
    clusters = [pair.prompt_id for pair in validation]
    lengths = length_difference(validation)
    longer_wins = np.sign(np.sign(length_difference(training)).sum())
    by_length = won(longer_wins * lengths)
    accuracy = bootstrap.mean(won(difference), clusters, job.seed, "accuracy")
    baseline = bootstrap.mean(by_length, clusters, job.seed, "length")
    advantage = bootstrap.mean(won(difference) - by_length, clusters, job.seed, "advantage")
    # Each half is judged at the temperature the other one asks for.
    half = np.array([generator("half", cluster).random() < 0.5 for cluster in clusters])
    temperatures = np.where(
        half, calibration.fit_temperature(difference[~half]), calibration.fit_temperature(difference[half])
    )
    calibrated = difference / temperatures
    facts: dict[str, Any] = {
        "validation_pairs": len(validation),
        "validation_prompts": len(set(clusters)),
        "accuracy": accuracy.value,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "length_accuracy": baseline.value,
        "length_accuracy_low": baseline.low,
        "length_accuracy_high": baseline.high,
        "advantage_over_length": advantage.value,
        "advantage_over_length_low": advantage.low,
        "advantage_over_length_high": advantage.high,
        "length_correlation": correlation(difference, lengths),
        "ece": calibration.ece(calibrated),
        "ece_uncalibrated": calibration.ece(difference),
        "brier": calibration.brier(calibrated),
        "nll": calibration.nll(calibrated),
        "temperature": calibration.fit_temperature(difference),
        "training_mean": [float(m) for m in reward.mean_K],
    }
    if scores_BK.shape[1] > 1:
        facts["disagreement"] = float(scores_BK.std(1, correction=0).mean())
    job.summary(**{name: round_off(value) for name, value in facts.items()})
    job.say(
        f"Held-out accuracy {accuracy.value:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}] on {len(validation)} pairs "
        f"of {len(set(clusters))} prompts; picking by length alone {baseline.value:.1%}."
    )
    if scores.std() < 1e-6:
        job.say("The reward is constant: it tells no two answers apart. Are there enough preferences that differ?")
    elif advantage.low <= 0:
        job.say("The reward model does not beat picking by length alone beyond doubt (see `advantage_over_length`).")
    return facts["temperature"]


def won(difference: np.ndarray) -> np.ndarray:
    """1 where the difference is positive, 0 where negative, 0.5 where there is none."""
    return (np.sign(difference) + 1) / 2


def length_difference(measured: list[Pair]) -> np.ndarray:
    return np.array([len(pair.chosen.response) - len(pair.rejected.response) for pair in measured], dtype=np.float64)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r; 0 where one of them does not vary."""
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def round_off(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
