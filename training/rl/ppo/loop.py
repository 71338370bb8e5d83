"""PPO's iterations: sample, score, look back, learn, save (`training.rl.ppo.stage` has the algorithm).

Several processes (`training.loops.distributed`) look back and learn together; rank 0 alone samples, scores, reports and writes.
All of them run the same lines.

Shapes: B rollouts, R tokens of the longest response.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from peft import get_peft_model

from engine.seeds import generator
from engine.stage.job import Job
from training.hardware.flops import peak_memory
from training.loops import distributed, schedule
from training.loops.clock import Clock
from training.loops.passes import bound, recomputes
from training.loops.process_group import processes, there
from training.loops.tracking import tracked
from training.models.load import base_dtype, load_model, quiet, save_trained
from training.models.logprobs import forward
from training.models.lora import peft_config
from training.models.padding import pad
from training.models.precision import autocast, products, recompute_layers
from training.rl.advantages import to_go
from training.rl.critic import Critic
from training.rl.fitted_values import features, fitted_values
from training.rl.guard import Watch
from training.rl.ppo.loss import Experience, describe, experience, loss, rewards
from training.rl.ppo.stage import Ppo
from training.rl.ppo.state import restore
from training.rl.record import consumed, keep, warn_of_sameness
from training.rl.rollouts import Question, Rollout, check_room, draw, load_questions
from training.rl.sampler import Sampler, start_engine
from training.rl.scoring import Scorer, make_scorer


def train(stage: Ppo, job: Job) -> None:
    work = partial(optimise, stage)
    with tracked(job, stage.report_to), processes(stage.processes or there(), job, work, ("peft", __name__)) as job:
        work(job)


def optimise(stage: Ppo, job: Job) -> None:
    """What each process does."""
    quiet()
    torch.use_deterministic_algorithms(True, warn_only=True)
    models = load_models(stage, job)
    tokenizer, lead = models.tokenizer, distributed.rank() == 0
    scorer = make_scorer(job, tokenizer, stage.rules, stage.weights, stage.pessimism, models.device) if lead else None
    questions = load_questions(job, tokenizer)
    learners = {"policy": models.policy, "critic": models.critic}
    state = restore(
        job.scratch / "checkpoints", {name: one for name, one in learners.items() if one is not None}, stage
    )
    watch = Watch(job, tokenizer, stage.guard, stage.gold, stage.gold_every, state.points) if stage.guard else None
    iterations = range(state.learnt, stage.iterations + bool(watch))  # a guard looks at the last policy, too
    everything = [*questions, *(watch.questions if watch else [])]
    check_room(everything, stage.max_tokens, models.policy.config)
    location = job.input("policy").location
    engine = (
        start_engine(location, everything, stage.max_tokens, stage.gpu_share, job, stage.ahead)
        if lead and iterations
        else None
    )
    sampler = Sampler(job, engine, models.policy, tokenizer, stage.max_tokens, state.ahead)

    def asked(iteration: int) -> list[Question]:
        drawn = draw(len(questions), stage.rollouts // stage.samples, iteration, job.seed)
        return [questions[i] for i in drawn for _ in range(stage.samples)]

    stopped, clock = None, Clock()
    for iteration in iterations:
        with clock.part("sampling"):
            rollouts = sampler.sample(asked(iteration), iteration)
        with clock.part("scoring"):
            scores, parts = score(scorer, rollouts)
        worth = scores - stage.missing_eos * np.array([not rollout.ended for rollout in rollouts])
        with clock.part("looking_back"):
            old = look_back(stage, models, rollouts, worth, state.controller.beta)
        last = iteration == stage.iterations
        if watch:
            stopped = watch.look(iteration, sampler, float(scores.mean()), old.kl, parts.get("disagreement"), last)
        if last or stopped:
            break
        warn_of_sameness(job, iteration, rollouts, scores, stage.missing_eos)
        if lead:
            keep(job, iteration, rollouts, scores)
        if stage.ahead and iteration + 1 in iterations:
            sampler.sample_ahead(asked(iteration + 1), iteration + 1)
        with clock.part("learning"):
            learnt = learn(stage, models, state.optimizer, old, iteration, job)
        curves = {**parts, **describe(rollouts, worth, old), **learnt, "beta": state.controller.beta}
        job.metric(iteration + 1, **curves, **clock.read(), memory_gib=peak_memory(models.device) / 2**30)
        job.progress(iteration + 1, stage.iterations, "iterations")
        state.controller.update(old.kl, stage.rollouts)
        state.save(iteration + 1, watch.guard.as_json() if watch else [], sampler.wait())

    state.checkpoints.wait()
    sampler.close()
    # The same digest says: the same answers to the same prompts, in the same order, were learnt from.
    digest, episodes = consumed(job)
    job.summary(consumed=digest, episodes=episodes, beta=state.controller.beta)
    if watch:
        if stopped:
            job.say(f"Stopped before iteration {episodes // stage.rollouts + 1}: {stopped}")
        job.summary(kept_iteration=watch.restore_best(models.policy), stopped=stopped or "")
    write(stage, job, models)


# -- models --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Models:
    """What one process has of them; `reference` is None where it is the policy without its adapter, `critic` where values are
    fitted."""

    policy: Any
    reference: Any
    critic: Critic | None
    tokenizer: Any
    device: torch.device


def load_models(stage: Ppo, job: Job) -> Models:
    """In each process, made ready to be shared by all."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    given, location = job.maybe("reference"), job.input("policy").location
    policy: Any
    dtype = base_dtype(location, job, stage.lora, products(stage.dtype))
    policy, tokenizer = load_model(location, job, dtype=dtype)
    # With an adapter the policy without it is the reference: one copy of the weights.
    reference: Any = (
        None if stage.lora and not given else load_model(given.location if given else location, job, dtype=dtype)[0]
    )
    backbone: Any = load_model(location, job)[0].base_model if stage.critic == "separate" else None
    critic = None if stage.critic == "fitted" else Critic(int(policy.config.hidden_size), backbone)
    if stage.lora:
        policy = get_peft_model(policy, peft_config(stage.lora))
    for module in (policy, reference, critic):
        if module is not None:
            module.to(device).eval()  # dropout off: rho is 1 before the first step
    for module in (policy, backbone):
        if module is not None and recomputes(stage):
            recompute_layers(module)
    for module in (policy, reference, critic):
        if module is not None:
            distributed.spread(module, stage.sharding)
    return Models(policy, reference, critic, tokenizer, device)


def write(stage: Ppo, job: Job, models: Models) -> None:
    """The policy as it is, or its adapter, into the job's output."""
    origin = job.input("policy")
    policy = distributed.put_together(models.policy, lambda: load_model(origin.location, job)[0])
    if distributed.rank() == 0:
        save_trained(job, policy, models.tokenizer, stage.lora, origin)


# -- the steps of an iteration -------------------------------------------------------------------------------------------


def score(scorer: Scorer | None, rollouts: Sequence[Rollout]) -> tuple[np.ndarray, dict[str, float]]:
    """What rank 0's scorer says, in all processes."""
    return distributed.from_lead(lambda: cast(Scorer, scorer).score(rollouts))


def look_back(stage: Ppo, models: Models, rollouts: Sequence[Rollout], scores: np.ndarray, beta: float) -> Experience:
    """What policy, reference and critic say about the rollouts before the policy learns, and what follows from it."""
    policy, reference, critic, device = models.policy, models.reference, models.critic, models.device
    answers = [rollout.answer for rollout in rollouts]
    mask_BR = pad(answers, device).mask_BR
    place_BR = torch.arange(mask_BR.numel(), device=device).view(mask_BR.shape)
    states: list[tuple[torch.Tensor, torch.Tensor]] = []  # features of this process's tokens, and where they are
    logprobs_BR, reference_BR, values_BR, entropy_BR = (torch.zeros(mask_BR.shape, device=device) for _ in range(4))
    tokens = bound(stage, policy.config)
    with torch.no_grad():
        for chunk, counts in distributed.turns(answers, tokens, stage.micro_batch):
            batch = pad([answers[i] for i in chunk], device)
            with autocast(device, products(stage.dtype)):
                out = forward(policy, batch, entropy=True, hidden=reads_policy(critic))
                values = critic(batch, out.hidden_BRD) if critic else 0.0
                with policy.disable_adapter() if reference is None else nullcontext():
                    theirs = forward(reference or policy, batch).logprobs_BR
            assert out.entropy_BR is not None
            width = out.logprobs_BR.shape[1]
            logprobs_BR[chunk, :width] += counts * out.logprobs_BR
            entropy_BR[chunk, :width] += counts * out.entropy_BR
            values_BR[chunk, :width] += counts * values
            reference_BR[chunk, :width] += counts * theirs
            if critic is None:
                assert out.hidden_BRD is not None
                counted_BR = batch.mask_BR & bool(counts)
                states.append((features(out.hidden_BRD)[counted_BR], place_BR[chunk, :width][counted_BR]))

    def put_together(known_BR: torch.Tensor) -> None:
        distributed.total(known_BR)  # each process knows the rows of its share
        known_BR.masked_fill_(~mask_BR, 0.0)

    for known_BR in (logprobs_BR, reference_BR, entropy_BR):
        put_together(known_BR)
    score_B = torch.tensor(scores, dtype=torch.float32, device=device)
    rewards_BR = rewards(mask_BR, logprobs_BR, reference_BR, score_B, beta, stage)
    if critic is None:
        x_NF, place_N = (torch.cat(parts) for parts in zip(*states, strict=True))
        targets_N = to_go(rewards_BR, stage.gamma).view(-1)[place_N]
        values_BR.view(-1)[place_N] = fitted_values(x_NF, targets_N, place_N // mask_BR.shape[1])
    put_together(values_BR)
    return experience(rollouts, mask_BR, logprobs_BR, reference_BR, values_BR, entropy_BR, rewards_BR, stage)


def reads_policy(critic: Critic | None) -> bool:
    """Whether values come from the policy's hidden states."""
    return critic is None or critic.backbone is None


def learn(
    stage: Ppo, models: Models, optimizer: torch.optim.Optimizer, old: Experience, iteration: int, job: Job
) -> dict[str, float]:
    """Epochs of minibatch steps on what was looked back on. Returns means over the steps taken, and of `step_kl` the last
    value: where an iteration ends early, the one that ended it."""
    policy, critic = models.policy, models.critic
    for group in optimizer.param_groups:
        group["lr"] = stage.lr * share_of_rate(stage, iteration)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    seen: list[dict[str, float]] = []
    step_kl = 0.0
    bounded = bound(stage, policy.config)
    for minibatch in minibatches(stage, len(old.answers), iteration, job.seed):
        tokens = int(old.mask_BR[minibatch].sum())
        optimizer.zero_grad()
        sums: dict[str, float] = {}
        for chunk, counts in distributed.turns([old.answers[i] for i in minibatch], bounded, stage.micro_batch):
            part = old.of(minibatch[chunk])
            batch = pad(part.answers, models.device)
            with autocast(models.device, products(stage.dtype)):
                now = forward(
                    policy, batch, stage.entropy_weight > 0, hidden=critic is not None and reads_policy(critic)
                )
                values_BR = critic(batch, now.hidden_BRD) if critic else None
            summed, parts = loss(now, values_BR, part, stage)
            (counts * summed / tokens).backward()
            sums = {name: sums.get(name, 0.0) + counts * value for name, value in parts.items()}
        step = {name: value / tokens for name, value in distributed.totals(sums).items()}
        step_kl = step["step_kl"]
        if stage.stop_kl is not None and step_kl > stage.stop_kl:
            job.say(
                f"Iteration {iteration + 1}: {len(seen)} of {stage.epochs * stage.minibatches} steps were taken; after them the "
                f"policy's `step_kl` is {step_kl:.3g}, beyond `stop_kl` ({stage.stop_kl:g})."
            )
            break
        distributed.sum_gradients(policy)
        if critic:
            distributed.sum_gradients(critic)
        torch.nn.utils.clip_grad_norm_(parameters, stage.max_grad_norm)
        optimizer.step()
        seen.append(step)
    means = {name: float(np.mean([step[name] for step in seen])) for name in (seen[0] if seen else {})}
    return {**means, "step_kl": step_kl, "steps": float(len(seen))}


def share_of_rate(stage: Ppo, iteration: int) -> float:
    """Adam's first steps are as long as any, and know the direction least: at the full rate they end exploration before it begins."""
    rise = min((iteration + 1) / max(int(stage.warmup * stage.iterations), 1), 1.0)
    return schedule.linear(iteration, stage.iterations, stage.warmup) if stage.decay else rise


def minibatches(stage: Ppo, rollouts: int, iteration: int, seed: int) -> Iterator[np.ndarray]:
    """The rows of each step of an iteration, epoch after epoch."""
    for epoch in range(stage.epochs):
        order = generator(seed, "minibatch", iteration, epoch).permutation(rollouts)
        yield from np.array_split(order, stage.minibatches)
