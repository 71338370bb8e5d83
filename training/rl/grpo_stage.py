"""`grpo`: policy, reward and prompts -> policy, without a critic, on TRL.

Several answers to one prompt are each other's baseline (Shao et al. 2024, arXiv:2402.03300, eq. 3). `method` sets what
its successors changed, and each of these can be set by itself:

|          | advantage of answer i | token losses are      | KL to the reference | else |
|----------|-----------------------|-----------------------|---------------------|------|
| grpo     | (r_i - mean) / std    | averaged an answer    | in the loss, k3     | |
| dr_grpo  | r_i - mean            | summed / max_tokens   | in the loss, k3     | no bias by length or difficulty (arXiv:2503.20783) |
| dapo     | (r_i - mean) / std    | averaged over tokens  | in the loss, k3     | clip to [1 - .2, 1 + .28], cut answers do not count (arXiv:2503.14476) |
| rloo     | r_i - mean of others  | summed / max_tokens   | in the reward, k1   | the policy gradient itself (arXiv:2402.14740) |

Only a KL in the reward tells a token what it does to the KL of later ones: the optimum of that objective is
pi_ref exp(r / beta), and `rloo` reaches it. A KL in the loss takes the prefix as given.

Answers are sampled by vLLM in this process, on a CPU too. The reference is always the one that is given (or the policy
as it was); TRL would load what the policy's configuration names as its origin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from engine.stage.stage import Device, NotIdentity, Stage, port
from generators.rules.rule import Rule, sources, version
from training.hardware import allocator, memory
from training.loops.processes_settings import (
    Processes,
    Sharding,
    check_processes,
    largest_part,
    split_over,
)
from training.loops.tracking_settings import ReportTo
from training.models.lora_settings import Lora
from training.models.precision_settings import Dtype, Recompute
from training.rl.drawings import DRAWINGS
from training.rl.prompt_lengths import longest_prompt
from training.rl.reward_settings import check_rewards, check_weights

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight

Method = Literal["grpo", "dr_grpo", "dapo", "rloo"]
METHODS: dict[Method, dict[str, Any]] = {
    "grpo": {"loss": "grpo", "scale": "group", "kl": "loss"},
    "dr_grpo": {"loss": "dr_grpo", "scale": "none", "kl": "loss"},
    "dapo": {"loss": "dapo", "scale": "group", "kl": "loss", "clip_high": 0.28, "mask_cut": True},
    "rloo": {"loss": "dr_grpo", "scale": "none", "kl": "reward", "leave_one_out": True},
}


class Grpo(Stage):
    """Train a policy by reinforcement learning, comparing answers to the same prompt."""

    takes = {
        "policy": port("Model", "Adapter"),
        "reward": port("RewardModel", optional=True),
        "prompts": port("Prompt", "Conversation", many=True),
        "reference": port("Model", "Adapter", optional=True),
    }
    gives = "Model"
    phase = "training"
    environment = allocator.ENVIRONMENT
    work = "training.rl.grpo:optimise"
    drawings = DRAWINGS
    random = True
    version = 4

    method: Method = Field("grpo", description="Which objective: how advantages are scaled and lengths are weighed.")
    iterations: int = Field(30, ge=1, description="Batches of prompts that are answered and learnt from.")
    rollouts: int = Field(128, ge=2, description="Answers sampled an iteration.")
    samples: int = Field(8, ge=2, description="Answers a prompt, compared with each other; divides `rollouts`.")
    max_tokens: int = Field(64, ge=1, description="Longest answer.")
    epochs: int = Field(1, ge=1, description="Passes over the rollouts of an iteration.")
    minibatches: int = Field(1, ge=1, description="Optimizer steps an epoch.")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="Answers in memory at once, on each device; as many as keep a gibibyte (on a GPU: four) if left out.",
    )
    lr: float = Field(1e-6, gt=0, description="Peak learning rate.")
    decay: bool = Field(True, description="Let the rate fall linearly to 0 over the run.")
    beta: float = Field(0.05, ge=0, description="Reward given up per nat of KL to the reference.")
    clip: float = Field(0.2, gt=0, description="eps: how far the ratio moves before it stops to pay.")
    clip_high: float | None = Field(None, gt=0, description="The same for a ratio above 1; `clip` if left out.")
    loss: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo"] | None = Field(
        None, description="How token losses are put together (TRL's `loss_type`); by `method` if left out."
    )
    scale: Literal["group", "batch", "none"] | None = Field(
        None, description="What advantages are divided by the standard deviation of; by `method` if left out."
    )
    kl: Literal["loss", "reward"] | None = Field(None, description="Where the KL goes; by `method` if left out.")
    mask_cut: bool | None = Field(
        None, description="Leave answers that were cut at `max_tokens` out of the loss; by `method` if left out."
    )
    missing_eos: float = Field(1.0, ge=0, description="Taken off the score of an answer that was cut at `max_tokens`.")
    max_grad_norm: float = Field(1.0, gt=0, description="Greatest norm of the gradient.")
    rules: dict[str, Rule] = Field(
        {},
        description="Name -> expression over completion, reference, prompt, length, finish_reason; a check, or a Python function.",
    )
    weights: dict[str, float] = Field(
        {}, description="Weight of each rule and of `reward` in the score; 1 if not named."
    )
    pessimism: float = Field(0.0, ge=0, description="Standard deviations of an ensemble taken off its mean.")
    lora: Lora | None = Field(None, description="Train an adapter; the policy without it is the reference.")
    dtype: Dtype = "auto"
    recompute: Recompute = None
    gpu_share: Annotated[float, NotIdentity] = Field(0.3, gt=0, lt=1, description="Of the GPU's memory, for sampling.")
    checkpoint_every: Annotated[int, NotIdentity] = Field(1, ge=1, description="Iterations.")
    processes: Processes = None
    sharding: Sharding = "replicate"
    report_to: ReportTo = "none"

    @model_validator(mode="after")
    def _consistent(self) -> Grpo:
        if self.rollouts % self.samples:
            raise ValueError(f"`samples` ({self.samples}) must divide `rollouts` ({self.rollouts})")
        if self.rollouts % (self.minibatches * (self.micro_batch or 1)):
            raise ValueError(f"`minibatches` times `micro_batch` must divide `rollouts` ({self.rollouts})")
        check_weights(self.weights, self.rules)
        alone = self.together and not self.micro_batch
        check_processes(
            self.processes, self.sharding, self.lora, self.shareable, "passes" if self.together else "answers",
            "`bnpo` takes the mean over the tokens that are in memory at once" if alone else "",
        )  # fmt: skip
        return self

    @property
    def together(self) -> bool:
        """Whether the loss depends on which answers are in memory at once."""
        return self.chosen("loss") == "bnpo"

    @property
    def shareable(self) -> int:
        """By how many processes a step can be shared at most."""
        answers = self.rollouts // self.minibatches
        return answers // (self.micro_batch or answers) if self.together else answers

    def chosen(self, name: str) -> Any:
        """An option, or what `method` sets it to."""
        given = getattr(self, name, None)
        return METHODS[self.method].get(name) if given is None else given

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), **version(self._rules())}

    def sources(self, base: str) -> dict[str, str]:
        return sources(self._rules(), base)

    def check(self, known: Preflight) -> None:
        from training.rl import prompts_check

        check_rewards(self.rules, known)
        prompts_check.check(known)

    def _rules(self) -> list[Rule]:
        return [*self.rules.values()]

    def output(self, given: dict[str, list[str]]) -> str:
        return "Adapter" if self.lora and not self.lora.merge else "Model"

    def forecast(self, given: dict[str, list[dict[str, Any]]], device: Device) -> dict[str, Any]:
        """What `gpu_share` leaves is what there is to train in."""
        split = split_over(self.processes, self.sharding)
        return memory.forecast_fine_tuning(
            given["policy"][0], device.less(self.gpu_share), self.lora, self.max_tokens + longest_prompt(given, self.max_tokens),
            largest_part(self.rollouts // self.minibatches, self.processes), self.micro_batch, self.dtype, self.recompute, sampler=True, equal=True,
            references=int(not self.lora) / split, reward_models=len(given.get("reward", [])), processes=split, shared_by=self.processes or 1,
        )  # fmt: skip
