"""Language models in the Hugging Face layout: loading them to be trained, and writing what was trained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from engine.plan.model_folder import loading
from generators.backends import adapters
from generators.text.prompts import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.stage.job import Job
    from engine.store.artifact import Artifact
    from training.models.lora_settings import Lora


def quiet() -> None:
    """Keep progress bars and notices of transformers and datasets out of the log."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def is_adapter(location: str) -> bool:
    return (Path(location) / adapters.CONFIG).exists()


def base_of(location: str, job: Job) -> str:
    """Where the model is that this adapter was trained on.

    Raises:
        UserError: it is not in the store.
    """
    return adapters.base_of(location, job.store)


def own_dtype(location: str, job: Job) -> torch.dtype:
    """The type in which a model stands there (of an adapter, its base); float32 where its config says none."""
    base = base_of(location, job) if is_adapter(location) else location
    with loading(base):
        stated = AutoConfig.from_pretrained(base, trust_remote_code=False).get_text_config().dtype
    return stated if isinstance(stated, torch.dtype) else torch.float32


def load_model(
    location: str, job: Job, quantization: Any = None, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, by folder (or hub name), ready to be trained.

    Weights come in float32: an optimizer's small steps are lost in bfloat16. An adapter comes merged into its base.
    `job` gives the seed for whatever is drawn afterwards (dropout, new adapters).

    Args:
        dtype: of the weights, where others are trained.
    """
    quiet()
    set_seed(job.derive("model") % 2**31)
    adapter = is_adapter(location)
    options = {"quantization_config": quantization} if quantization else {}
    base = base_of(location, job) if adapter else location
    with loading(base):
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, **options, trust_remote_code=False)
    if adapter:
        # PEFT takes seconds to import, and few models are adapters.
        from training.models.lora import merged

        with loading(location, "adapter"):
            model = merged(model, location)
    return model, load_tokenizer(location)


def base_dtype(location: str, job: Job, lora: Lora | None, products: torch.dtype) -> torch.dtype:
    """In which type to load a model that is to be trained: float32, unless an adapter is trained and products are in a smaller
    one than float32 anyway; then the frozen weights stay as they are."""
    if lora is None or products == torch.float32:
        return torch.float32
    return own_dtype(location, job)


def load_reference(job: Job, lora: Lora | None, products: torch.dtype = torch.float32) -> PreTrainedModel | None:
    """What a policy is held to: the model on the port `reference`, else the policy as it came. None where that is the policy
    without the adapter that is trained. Its weights are as wide as the policy's, whose first steps would else seem to have moved."""
    reference = job.maybe("reference")
    if lora and not reference:
        return None
    location = (reference or job.input("policy")).location
    return load_model(location, job, dtype=base_dtype(location, job, lora, products))[0]


def save_trained(job: Job, model: Any, tokenizer: Any, lora: Lora | None, source: Artifact) -> None:
    """`save` what was trained from `source` with these settings: all of the model, an adapter merged, or an adapter alone. Weights
    are of the type that the source has them in."""
    if lora and not lora.merge:
        save(job, model, tokenizer, source.id)
        return
    if lora and lora.quantize:
        save(job, model.merge_and_unload(), tokenizer)
        return
    dtype = own_dtype(source.location, job)
    if lora:
        from training.models.lora import merged_in

        model = merged_in(model, dtype)
    save(job, model.to(dtype), tokenizer)


def save(job: Job, model: Any, tokenizer: PreTrainedTokenizerBase, base: str = "") -> None:
    """Write the model in the Hugging Face layout into the job's output, by rank 0 alone.

    What names this machine (the folder it was loaded from) is left out: the same weights give the same files.

    Args:
        base: for an adapter (a PEFT model), the id of the artifact it was trained on.
    """
    if int(os.environ.get("RANK", "0")):
        return
    if base:
        model.peft_config["default"].base_model_name_or_path = base
        model.save_pretrained(job.output, save_embedding_layers=False)  # "auto" would ask a model hub
    else:
        model.config._name_or_path = ""
        model.save_pretrained(job.output)
    (job.output / "README.md").unlink(missing_ok=True)  # PEFT's template of a card, with paths in it
    tokenizer.name_or_path = ""
    tokenizer.save_pretrained(job.output)
