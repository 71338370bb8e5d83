"""The whole state of a training loop in one file that is there whole or not at all.

For loops of our own (reward, PPO): everything the next step depends on is a tensor here or a number in `facts`, since
orders and seeds are derived from the step. A killed run goes on from the last file and ends with the same bits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # all the state Adam and AdamW keep for a parameter


def save(file: Path, modules: Mapping[str, nn.Module], optimizer: Optimizer, facts: dict[str, Any]) -> None:
    """Write parameters, the optimizer's moments and `facts` (JSON), by a rename."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for module_name, module in modules.items():
        for name, parameter in module.named_parameters():
            tensors[f"{module_name}/{name}"] = parameter.detach().contiguous()
    for i, parameter in enumerate(_parameters(optimizer)):
        state: Mapping[str, Any] = optimizer.state.get(parameter, {})
        tensors |= {f"optimizer/{i}/{moment}": state[moment] for moment in MOMENTS if moment in state}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    save_file(tensors, partial, metadata={"facts": json.dumps(facts)})
    with partial.open("rb") as handle:
        os.fsync(handle.fileno())
    partial.replace(file)


def restore(file: Path, modules: Mapping[str, nn.Module], optimizer: Optimizer) -> dict[str, Any] | None:
    """Load what `save` wrote into these modules and this optimizer, in place. Returns `facts`; None without a file."""
    import torch
    from safetensors import safe_open

    if not file.exists():
        return None
    with safe_open(file, framework="pt") as tensors, torch.no_grad():
        known = set(tensors.keys())
        for module_name, module in modules.items():
            for name, parameter in module.named_parameters():
                parameter.copy_(tensors.get_tensor(f"{module_name}/{name}"))
        for i, parameter in enumerate(_parameters(optimizer)):
            for moment in MOMENTS:
                if (key := f"optimizer/{i}/{moment}") in known:
                    tensor = tensors.get_tensor(key)
                    # Adam counts steps on the CPU, whatever device the parameter is on
                    optimizer.state[parameter][moment] = tensor if moment == "step" else tensor.to(parameter.device)
        return json.loads(tensors.metadata()["facts"])


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
