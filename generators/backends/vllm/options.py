"""Options that an engine in this process and a `vllm serve` have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from engine.errors import UserError, nearest
from generators.backends import adapters

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core in this process: batches are seen whole
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout belongs to whoever called
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer that shares this process keeps its threads
}


def common(
    config: Any, dtype: str, max_model_len: int | None, gpu_memory_utilization: float, adapter: str | None
) -> dict[str, Any]:
    """Options, as `vllm.LLM` names them.

    Args:
        config: the model's, as `model_config` gives it.
        dtype: "auto" is the checkpoint's own (which vLLM's "auto" is not: it rounds a float32 checkpoint).

    Raises:
        UserError: vLLM can't serve the adapter.
    """
    if dtype == "auto":
        dtype = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    options: dict[str, Any] = {
        "dtype": dtype,
        "max_model_len": max_model_len,
        "gpu_memory_utilization": gpu_memory_utilization,
        "enforce_eager": not torch.cuda.is_available(),
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        "trust_remote_code": False,
        # llguidance knows all of JSON Schema that can be enforced; without free white space an answer always ends.
        "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
    }
    if not torch.cuda.is_available():
        # A prompt that is prefilled in two steps makes vLLM rewind its request's generator, which the CPU's can't:
        # "CPU Generator does not use offset" ends the batch. So no prompt is cut.
        options["enable_chunked_prefill"] = False
    if adapter:
        options |= {"enable_lora": True, "max_lora_rank": adapters.room_for(adapter)}
    return options


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that the vLLM installed here does not have (which there are differs between its versions), and what
    would run a model's own code.

    Raises:
        UserError: there is one.
    """
    if options.get("trust_remote_code"):
        raise UserError(
            "`trust_remote_code` would run code that comes with a model; no such code is run. Leave it out."
        )
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in fields(EngineArgs)}
    for name in options:
        if name not in known:
            import vllm

            raise UserError(f"vLLM {vllm.__version__} has no option `{name}`.{nearest(name, known)}")
