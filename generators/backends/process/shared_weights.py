"""Weights in memory that two processes see.

torch is imported where tensors are handled: a process that only watches an engine does without.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SharedTensor:
    """Where a tensor lies in shared memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def shared_memory() -> IO[bytes]:
    """A file without a name, in memory where the system can do that (unlike /dev/shm, containers don't cap it)."""
    return os.fdopen(os.memfd_create("weights"), "w+b") if sys.platform == "linux" else tempfile.TemporaryFile()


def write_weights(memory: IO[bytes], named: Iterable[tuple[str, Tensor]]) -> list[SharedTensor]:
    """Write tensors into the file, one after the other."""
    import torch

    weights: list[SharedTensor] = []
    memory.seek(0)
    for name, tensor in named:
        offset = -(-memory.tell() // 64) * 64
        memory.seek(offset)
        flat = tensor.detach().cpu().contiguous().flatten()
        memory.write(flat.view(torch.uint8).numpy().data)
        weights.append(SharedTensor(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), offset))
    memory.flush()
    return weights


def read_weights(memory: int, weights: Sequence[SharedTensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors as they lie there, not copied. They change with the file.

    Args:
        memory: the file's descriptor.
    """
    import torch

    view = mmap.mmap(memory, 0)
    for one in weights:
        dtype: torch.dtype = getattr(torch, one.dtype)
        count = torch.Size(one.shape).numel()
        flat = (
            torch.frombuffer(view, dtype=dtype, count=count, offset=one.offset)
            if count
            else torch.empty(0, dtype=dtype)
        )
        yield one.name, flat.view(one.shape)
