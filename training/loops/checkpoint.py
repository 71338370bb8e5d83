"""Checkpoints that can be trusted: written aside and renamed when whole, checked before they are used.

    checkpoints/step-00000100/state.safetensors   weights, optimizer, random states
                              checkpoint.json     step, score, what else there is to know
                              sealed.json         digests of both (`training.loops.sealed`)

A kill at any moment leaves either the new checkpoint or the one before. One whose bytes differ from its digests is passed
over, so a torn disk costs a few steps, not the run.
"""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.errors import StageFailed
from engine.store.whole_file import sync
from training.loops.distributed import split_like
from training.loops.lead_files import from_lead_file
from training.loops.sealed import is_whole, seal

STATE, RECORD = "state.safetensors", "checkpoint.json"


@dataclass
class Checkpoint:
    """What training needs to go on as if nothing had happened.

    Attributes:
        step: steps done.
        tensors: everything that is a tensor, by name.
        facts: everything else, as JSON.
        score: lower is better; the best checkpoint outlives newer ones.
    """

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=lambda: {})
    score: float | None = None


class Checkpoints:
    """The checkpoints of one run, in a folder of their own.

    Args:
        folder: made when the first one is written.
        keep: how many of the newest stay. The best scored one stays as well.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep
        self._writer: threading.Thread | None = None
        self._error: OSError | None = None

    def save(self, checkpoint: Checkpoint, wait: bool = False) -> None:
        """Copy the tensors and write them while training goes on. One write at a time.

        Raises:
            StageFailed: the write before this one (with `wait`, this one) failed, for want of space, say. The
                checkpoints before it are whole.
        """
        self.wait()
        copied = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in checkpoint.tensors.items()}
        frozen = Checkpoint(checkpoint.step, copied, json.loads(json.dumps(checkpoint.facts)), checkpoint.score)
        self._writer = threading.Thread(target=self._write_caught, args=(frozen,))
        self._writer.start()
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait for the write under way.

        Raises:
            StageFailed: it failed.
        """
        if self._writer:
            self._writer.join()
            self._writer = None
        if self._error:
            error, self._error = self._error, None
            raise StageFailed(
                f"a checkpoint could not be written to {self.folder}: {error.strerror or error}. "
                "Make room and run again: it goes on from the checkpoint before."
            ) from error

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, of rank 0; all processes must ask. Newer ones that are not are removed."""
        folder = from_lead_file(self._newest, self.folder)
        if folder is None:
            return None
        record = json.loads((folder / RECORD).read_text())
        return Checkpoint(record["step"], load_file(folder / STATE), record["facts"], record["score"])

    def _newest(self) -> Path | None:
        for folder in reversed(self._folders()):
            if is_whole(folder):
                return folder
            shutil.rmtree(folder)
        return None

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*[0-9]"))

    def _write_caught(self, checkpoint: Checkpoint) -> None:
        try:
            self._write(checkpoint)
        except OSError as error:
            self._error = error
        except Exception as error:  # safetensors wraps what the system said
            self._error = OSError(str(error))

    def _write(self, checkpoint: Checkpoint) -> None:
        target = self.folder / f"step-{checkpoint.step:08d}"
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            save_file(checkpoint.tensors, partial / STATE)
            record = {"step": checkpoint.step, "score": checkpoint.score, "facts": checkpoint.facts}
            (partial / RECORD).write_text(json.dumps(record))
            seal(partial)
            shutil.rmtree(target, ignore_errors=True)
            partial.replace(target)
            sync(self.folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self._prune()

    def _prune(self) -> None:
        folders = self._folders()
        old = folders[: -self.keep]
        scored = {f: score for f in folders if (score := _score(f)) is not None}
        best = min(scored, key=lambda f: scored[f]) if scored else None
        for folder in old:
            if folder != best:
                shutil.rmtree(folder)


def _score(folder: Path) -> float | None:
    try:
        return json.loads((folder / RECORD).read_text())["score"]
    except (OSError, ValueError, KeyError, TypeError):  # damaged: `latest` will pass it over
        return None


# -- what goes in --------------------------------------------------------------------------------------------------------


def optimizer_tensors(
    parameters: Iterable[tuple[str, Tensor]], optimizers: list[torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """The state of the optimizers by parameter name: `optimizer.<name>.<entry>`."""
    found: dict[str, Tensor] = {}
    for name, parameter in parameters:
        for optimizer in optimizers:
            for entry, value in optimizer.state.get(parameter, {}).items():
                found[f"optimizer.{name}.{entry}"] = value if isinstance(value, torch.Tensor) else torch.tensor(value)
    return found


def restore_optimizers(
    tensors: dict[str, Tensor], parameters: Iterable[tuple[str, Tensor]], optimizers: list[torch.optim.Optimizer]
) -> None:
    """Put back what `optimizer_tensors` took."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            name, _, entry = key.removeprefix("optimizer.").rpartition(".")
            by_name.setdefault(name, {})[entry] = value
    for name, parameter in parameters:
        for optimizer in optimizers:
            if any(parameter is p for group in optimizer.param_groups for p in group["params"]):
                # Adam's step counter lives with the weights where its kernel is fused, on the CPU where it is not.
                fused = bool(optimizer.param_groups[0].get("fused"))
                optimizer.state[parameter] = {
                    entry: value.to(parameter.device)
                    if fused and value.shape != parameter.shape
                    else split_like(value, parameter)
                    for entry, value in by_name[name].items()
                }


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The random states of torch (tensors), NumPy and Python (JSON)."""
    tensors = {"random.torch": torch.get_rng_state()}
    for index in range(torch.cuda.device_count()):
        tensors[f"random.cuda.{index}"] = torch.cuda.get_rng_state(index)
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    return tensors, {
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }


def restore_random_state(tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    torch.set_rng_state(tensors["random.torch"])
    for index in range(torch.cuda.device_count()):
        if f"random.cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random.cuda.{index}"], index)
    kind, keys, position, has_gauss, cached = facts["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), position, has_gauss, cached))
    version, internal, gauss = facts["python"]
    random.setstate((version, tuple(internal), gauss))
