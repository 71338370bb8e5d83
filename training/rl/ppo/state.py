"""What one checkpoint of a PPO run holds: all that the next iteration depends on, beside its number."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from generators.backends.protocol import Completion
from training.loops import snapshot
from training.loops.checkpoint import Checkpoints
from training.loops.distributed import rank
from training.rl import kl
from training.rl.ppo.stage import Ppo


@dataclass
class State:
    """Policy, critic and optimizer as they are; the rest as it was when the run was last interrupted.

    Attributes:
        learnt: iterations.
        points: what the guard has seen.
        ahead: answers that were sampled ahead, by the number of their iteration.
    """

    checkpoints: Checkpoints
    modules: dict[str, nn.Module]
    optimizer: torch.optim.AdamW
    controller: kl.Controller
    learnt: int
    points: list[dict[str, Any]]
    ahead: dict[int, list[Completion]]

    def save(self, learnt: int, points: list[dict[str, Any]], ahead: dict[int, list[Completion]]) -> None:
        """All processes must; rank 0 writes."""
        answers = [asdict(answer) for answer in ahead.get(learnt, [])]
        facts = {"beta": self.controller.beta, "points": points, "ahead": answers}
        checkpoint = snapshot.take(learnt, self.modules, self.optimizer, facts)
        if rank() == 0:
            self.checkpoints.save(checkpoint)


def restore(folder: Path, modules: dict[str, nn.Module], stage: Ppo) -> State:
    """The state after the last whole checkpoint in this folder, in these modules; without one, that of a run's start."""
    parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=stage.lr, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0)
    checkpoints = Checkpoints(folder)
    found = snapshot.restore(checkpoints, modules, optimizer)
    learnt = found.step if found else 0
    facts: dict[str, Any] = found.facts if found else {"beta": stage.beta, "points": [], "ahead": []}
    return State(
        checkpoints, modules, optimizer, kl.Controller(facts["beta"], stage.target), learnt, facts["points"],
        {learnt: [Completion(**answer) for answer in facts["ahead"]]} if facts["ahead"] else {},
    )  # fmt: skip
