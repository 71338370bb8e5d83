"""`ppo`: policy, reward and prompts -> policy (Schulman et al. 2017; for language models, Ziegler et al. 2019).

One iteration:

1.  sample answers from the policy with vLLM at temperature 1: the samples are the policy's own
2.  r_t = -beta (log pi(y_t) - log pi_ref(y_t)) + [t is the last token] (score - penalty if it is not an end token)
                                                                                         (Ziegler et al. 2019, eq. 2)
3.  values by a regression on the policy's hidden states (`training.rl.fitted_values`) or by a critic that learns, and from them
    A_t, R_t by generalised advantage estimation                                      (`training.rl.advantages`)
4.  a few epochs of minibatches on
        L = E[min(rho_t A_t, clip(rho_t, 1-eps, 1+eps) A_t)],   rho_t = pi(y_t) / pi_old(y_t)     (PPO, eq. 7)
        + value_weight 1/2 E[max((V_t - R_t)^2, (clip(V_t, V_old +- eps_v) - R_t)^2)]  for a critic (PPO, eq. 9, clipped)
        - entropy_weight E[H_t]
    with values and returns in units of the returns' root mean square, so that no weight depends on the reward's scale

pi_old is the trainer's own: vLLM computes in another order, so its log-probabilities differ by rounding (or by its
dtype). The weight min(pi_old / pi_sampler, C) corrects for that (truncated importance sampling, Ionides 2008), and
the difference is one of the curves. The same weight corrects for the step that samples are behind with `ahead`, which
has the sampler answer the next questions while the policy learns (Noukhovitch et al. 2024, arXiv:2410.18252).

Everything an iteration draws is derived from its number. With policy, critic, optimizer and beta in one checkpoint an
iteration, a run that is killed ends with the same bits as one that is not.

The formulas are in `training.rl.ppo.loss`, the iterations in `training.rl.ppo.loop`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from engine.errors import UserError
from engine.stage.stage import Device, NotIdentity, Stage, port
from generators.rules.rule import Rule, sources, version
from training.hardware import allocator, memory
from training.loops.processes_settings import check_launch
from training.loops.tracking_settings import ReportTo
from training.models.lora_settings import Lora
from training.models.precision_settings import Dtype, Recompute
from training.rl.drawings import DRAWINGS
from training.rl.guard_settings import GuardConfig
from training.rl.prompt_lengths import longest_prompt
from training.rl.reward_settings import check_rewards, check_weights

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight


class Ppo(Stage):
    """Train a policy by reinforcement learning to give answers that score higher."""

    takes = {
        "policy": port("Model", "Adapter"),
        "reward": port("RewardModel", optional=True),
        "prompts": port("Prompt", "Conversation", many=True),
        "reference": port("Model", "Adapter", optional=True),
        "held_out": port("Prompt", "Conversation", many=True, optional=True),
    }
    gives = "Model"
    phase = "training"
    environment = allocator.ENVIRONMENT
    work = "training.rl.ppo.loop:train"
    drawings = DRAWINGS
    random = True
    version = 6

    iterations: int = Field(30, ge=1, description="Batches of prompts that are answered and learnt from.")
    rollouts: int = Field(128, ge=2, description="Answers sampled an iteration.")
    samples: int = Field(1, ge=1, description="Answers a prompt; divides `rollouts`.")
    max_tokens: int = Field(64, ge=1, description="Longest answer.")
    epochs: int = Field(2, ge=1, description="Passes over the rollouts of an iteration.")
    minibatches: int = Field(4, ge=1, description="Optimizer steps an epoch.")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="Answers in memory at once, on each device; as many as keep a gibibyte (on a GPU: four) if left out.",
    )
    lr: float = Field(1e-5, gt=0, description="Peak learning rate.")
    warmup: float = Field(0.2, ge=0, le=1, description="Share of the iterations in which the rate rises.")
    decay: bool = Field(True, description="Let the rate then fall linearly to 0 over the run.")
    clip: float = Field(0.2, gt=0, description="eps: how far the ratio moves before it stops to pay.")
    clip_value: float = Field(
        0.2, gt=0, description="eps_v: the same for a critic's value, in units of the returns' RMS."
    )
    value_weight: float = Field(0.5, ge=0, description="Of a critic's loss beside the policy's.")
    entropy_weight: float = Field(0.0, ge=0, description="Of a bonus for entropy.")
    critic: Literal["fitted", "shared", "separate"] = Field(
        "fitted",
        description="Where values come from: a regression on the policy's hidden states, a head on the policy that is trained, or a "
        "model of its own.",
    )
    gamma: float = Field(1.0, gt=0, le=1, description="Discount of rewards a token later.")
    lam: float = Field(0.95, ge=0, le=1, description="Lambda of generalised advantage estimation.")
    beta: float = Field(0.05, ge=0, description="Reward given up per nat of KL to the reference.")
    target: float | None = Field(None, gt=0, description="KL (nats an answer) towards which beta is steered.")
    kl_estimator: Literal["k1", "k3"] = Field("k1", description="Of the KL in the reward, per token.")
    stop_kl: float | None = Field(
        None, gt=0, description="KL (nats a token) between the policy and pi_old that ends an iteration's epochs early."
    )
    missing_eos: float = Field(1.0, ge=0, description="Taken off the score of an answer that was cut at `max_tokens`.")
    whiten_rewards: bool = Field(False, description="Scale rewards to unit variance. beta then counts in those units.")
    whiten_advantages: bool = Field(True, description="Scale advantages to mean 0 and variance 1 in each batch.")
    correction: float = Field(2.0, ge=1, description="C: the cap on the weight pi_old / pi_sampler.")
    ahead: bool = Field(
        False,
        description="Sample the answers of the next iteration while this one is learnt from: they are a step behind the "
        "policy, which `correction` weighs. For machines with a core or a GPU to spare.",
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Greatest norm of the gradient.")
    rules: dict[str, Rule] = Field(
        {},
        description="Name -> expression over completion, reference, prompt, length, finish_reason; a check, or a Python function.",
    )
    weights: dict[str, float] = Field(
        {}, description="Weight of each rule and of `reward` in the score; 1 if not named."
    )
    pessimism: float = Field(0.0, ge=0, description="Standard deviations of an ensemble taken off its mean.")
    guard: GuardConfig | None = Field(
        None, description="Stop where the reward is over-optimised, and give the best policy instead of the last."
    )
    gold: dict[str, Rule] = Field({}, description="For the guard: rules that measure answers to `held_out` prompts.")
    gold_every: int = Field(5, ge=1, description="Iterations between two such measurements.")
    lora: Lora | None = Field(None, description="Train an adapter; the policy without it is the reference.")
    dtype: Dtype = "auto"
    recompute: Recompute = None
    gpu_share: Annotated[float, NotIdentity] = Field(0.3, gt=0, lt=1, description="Of the GPU's memory, for sampling.")
    processes: Annotated[int | None, NotIdentity] = Field(
        None, ge=1, description="That share each minibatch; one for each GPU if left out. Changes rounding only."
    )
    sharding: Annotated[Literal["replicate", "shard"], NotIdentity] = Field(
        "replicate", description="`shard`: FSDP2, for models that don't fit one GPU."
    )
    report_to: ReportTo = "none"

    @model_validator(mode="after")
    def _consistent(self) -> Ppo:
        if self.rollouts % self.samples:
            raise ValueError(f"`samples` ({self.samples}) must divide `rollouts` ({self.rollouts})")
        if self.minibatches > self.rollouts:
            raise ValueError(f"{self.rollouts} `rollouts` can't be cut into {self.minibatches} `minibatches`")
        if self.critic == "fitted":
            fields = type(self).model_fields
            idle = [name for name in ("value_weight", "clip_value") if getattr(self, name) != fields[name].default]
            if idle:
                raise ValueError(
                    f"`{idle[0]}` is for a critic that is trained; `critic: fitted` trains none. Leave it out, or set `critic` to "
                    "`shared` or `separate`"
                )
        check_launch(self.processes)
        if self.lora and self.sharding == "shard":
            raise ValueError("`lora` needs whole matrices: use `sharding: replicate`, or train all weights")
        check_weights(self.weights, self.rules)
        return self

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), **version(self._rules())}

    def sources(self, base: str) -> dict[str, str]:
        return sources(self._rules(), base)

    def check(self, known: Preflight) -> None:
        from generators.rules import reward_function
        from training.rl import prompts_check

        check_rewards(self.rules, known)
        if bool(self.gold) != bool(known.inputs.get("held_out")):
            raise UserError("`gold` says what answers to the prompts of `held_out` are worth: give both, or neither.")
        reward_function.check(self.gold.values(), known)
        prompts_check.check(known)

    def _rules(self) -> list[Rule]:
        return [*self.rules.values(), *self.gold.values()]

    def output(self, given: dict[str, list[str]]) -> str:
        return "Adapter" if self.lora and not self.lora.merge else "Model"

    def forecast(self, given: dict[str, list[dict[str, Any]]], device: Device) -> dict[str, Any]:
        """What `gpu_share` leaves is what there is to train in."""
        count = self.processes or 1
        split = count if self.sharding == "shard" else 1
        beside = (int(not self.lora) + 4 * (self.critic == "separate")) / split
        return memory.forecast_fine_tuning(
            given["policy"][0], device.less(self.gpu_share), self.lora, self.max_tokens + longest_prompt(given, self.max_tokens),
            max(1, self.rollouts // self.minibatches // count), self.micro_batch, self.dtype, self.recompute, sampler=True,
            references=beside, reward_models=len(given.get("reward", [])), processes=split, masked=False,
        )  # fmt: skip
