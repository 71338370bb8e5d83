"""Continued pretraining: the model that is trained is one that exists, in its own shape, with its own tokenizer and type.

Llama and Qwen3 decoders are trained by `training.pretrain.llama`, others by transformers' class behind the same interface.

Shapes: B blocks, T tokens, V vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from engine.errors import UserError
from engine.plan.model_folder import loading
from generators.text.prompts import load_tokenizer
from training.models.load import quiet
from training.models.output_head import scaling_of, score
from training.models.precision import autocast, recompute_layers
from training.pretrain.llama import IGNORE, Llama

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from engine.store.artifact import Artifact

STOCK = "stock."  # what the names of a stock model's parameters begin with


class Stock(nn.Module):
    """Any causal language model of transformers, called as `Llama` is."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        """`dtype` is that of matrix products; weights and the loss are float32."""
        super().__init__()
        self.config, self.dtype, self.stock = model.config, dtype, model.eval()  # nothing is dropped out, as in `Llama`
        self._no_split_modules, self.scaling = model._no_split_modules, scaling_of(model.config)

    def recomputed(self) -> None:
        """Make activations again in the backward pass, layer by layer."""
        recompute_layers(self.stock)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor | None = None, starts_BT: Tensor | None = None) -> Tensor:
        """Logits (B, T, V); with targets, the summed cross-entropy in nats over those that aren't `IGNORE`."""
        assert starts_BT is None  # refused at the start
        with autocast(tokens_BT.device, self.dtype):
            if targets_BT is None:
                return self.stock(input_ids=tokens_BT, use_cache=False).logits.float()
            hidden_BTD = self.stock.base_model(input_ids=tokens_BT, use_cache=False).last_hidden_state
            scored_BT = targets_BT != IGNORE
            head = self.stock.get_output_embeddings()
            return -score(hidden_BTD[scored_BT], head, targets_BT[scored_BT], self.scaling).logprobs_N.sum()


def load_decoder(source: Artifact, dtype: torch.dtype, block: int, document_mask: bool) -> Llama | Stock:
    """The model to go on with, its weights in float32.

    Args:
        dtype: of matrix products.
        block: tokens of a block.

    Raises:
        UserError: it can't be loaded, its context is shorter than a block, or its documents can't be kept apart.
    """
    quiet()
    with loading(source.location, "causal language model"):
        model: Any = AutoModelForCausalLM.from_pretrained(source.location, dtype=torch.float32, trust_remote_code=False)
    context = getattr(model.config, "max_position_embeddings", None) or block
    if block > context:
        raise UserError(
            f"blocks of {block} tokens are longer than the {context} that {source.name} can read. Set `tokenize`'s `block` to "
            f"{context} at most."
        )
    if not _is_llama(model.config):
        if document_mask:
            raise UserError(
                f"`document_mask` keeps documents apart in plain Llama and Qwen3 decoders; {source.name} is a "
                f"{type(model).__name__}. Leave it out, or tokenise with `packing: best_fit`."
            )
        return Stock(model, dtype)
    decoder = Llama(model.config, dtype)
    decoder.load_state_dict(model.state_dict())
    return decoder


def _is_llama(config: Any) -> bool:
    """Whether `Llama` computes what this config's class does."""
    return (
        config.model_type in ("llama", "qwen3")
        and config.hidden_act == "silu"
        and config.rope_parameters.get("rope_type", "default") == "default"
        and not config.attention_bias
        and not getattr(config, "mlp_bias", False)
        and not getattr(config, "use_sliding_window", False)
    )


def to_stock(weights: dict[str, Tensor], config: PretrainedConfig, source: Artifact) -> Any:
    """What was trained, in transformers' class, in the type that the model came in, ended as it was."""
    stated = AutoConfig.from_pretrained(source.location, trust_remote_code=False).dtype
    dtype = stated if isinstance(stated, torch.dtype) else torch.float32
    twin: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    twin.load_state_dict({name.removeprefix(STOCK): tensor for name, tensor in weights.items()})
    if (Path(source.location) / "generation_config.json").exists():
        twin.generation_config = GenerationConfig.from_pretrained(source.location)
    return twin.to(dtype)


def own_tokenizer(source: Artifact, shards: Artifact, beside: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The model's tokenizer, where it is the one that these shards were made with.

    Args:
        beside: the tokenizer beside the shards.

    Raises:
        UserError: it is another one, so that ids would mean other texts.
    """
    own = load_tokenizer(source.location)
    check_same(own, beside, f"{source.name} and the shards {shards.name}")
    if own.pad_token_id is None:
        own.pad_token = own.eos_token
    return own


def check_same(one: Any, other: Any, which: str) -> None:
    """See that two tokenizers make the same ids of every text.

    Raises:
        UserError: they don't.
    """
    if one.get_vocab() != other.get_vocab() or _rules(one) != _rules(other):
        raise UserError(
            f"{which} have different tokenizers ({len(one):,} and {len(other):,} tokens): the ids would mean other texts. "
            "Tokenise with the model's: `kind: tokenize`, `from: {documents: ..., tokenizer: MODEL}`."
        )


def _rules(tokenizer: Any) -> dict[str, Any]:
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: described[name] for name in ("normalizer", "pre_tokenizer", "model")}
