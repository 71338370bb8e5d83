"""What is changed in vLLM, and when each change can go. Seen with vLLM 0.32."""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import Any


class _VllmModules:
    """`sys` as vLLM's search for kernels may see it: with vLLM's own modules alone."""

    @property
    def modules(self) -> dict[str, Any]:
        return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "vllm"}


def search_for_kernels_in_vllm_alone() -> None:
    """Let vLLM start in a process that has imported much else.

    On a CPU it swaps its Triton kernels wherever it finds them, and searches the objects of all imported modules. Those that
    answer to any name (llvmlite's library, flask's proxies) make it fall. Its kernels are in its own modules.

    Can go when tests/generators/backends/vllm/test_engine.py passes without: its engine starts beside flask and numba.
    """
    try:
        from vllm.triton_utils import dispatcher
    except ImportError:  # a release that does not search
        return
    if hasattr(dispatcher, "sys"):
        dispatcher.sys = _VllmModules()  # pyright: ignore[reportPrivateImportUsage]


def leave_ranks_uncompiled() -> None:
    """Spare every engine on a CPU a compiler run of seconds, for the rank of the sampled token, which nobody reads.

    Can go when vLLM computes no rank that was not asked for: an engine starts as fast without.
    """
    with contextlib.suppress(ImportError, AttributeError):  # a version of vLLM that does not compile it
        sampler: Any = importlib.import_module("vllm.v1.sample.sampler")
        sampler.batched_count_greater_than = sampler.batched_count_greater_than._torchdynamo_orig_callable


def compile_grammars_at_once(llm: Any) -> None:
    """Have a JSON Schema compiled before its requests join the batch.

    Compiled in the background, a grammar would let them join whenever it is ready, and a batch would not be repeatable.
    Can go when vLLM has an option for it.
    """
    core = getattr(llm.llm_engine.engine_core, "engine_core", None)
    if manager := getattr(core, "structured_output_manager", None):
        manager._use_async_grammar_compilation = False
