"""One dial, `depth`, from which a decoder's shape and learning rate follow; each can be set by itself.

The width is 64 times the depth (12 layers give GPT-2 small's 768), heads are 64 wide, the MLP's inner width is 8/3 of the
width as in Llama, and the peak learning rate falls as 1/width (Yang et al. 2022, arXiv:2203.03466, table 3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Family = Literal["llama", "qwen3"]


class Size(BaseModel):
    """The shape of a decoder. What is left out follows from `depth`."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    depth: int = Field(default=4, ge=1, description="Number of layers; sets the rest.")
    width: int | None = Field(default=None, ge=8, description="Width of the residual stream; 64 * depth if left out.")
    heads: int | None = Field(default=None, ge=1, description="Attention heads; width / 64 if left out.")
    kv_heads: int | None = Field(default=None, ge=1, description="Key and value heads; as many as heads if left out.")
    inner: int | None = Field(default=None, ge=8, description="Inner width of the MLP; 8/3 of the width if left out.")
    tied: bool = Field(default=True, description="The output layer is the embedding table.")
    rope_theta: float = Field(default=10_000.0, gt=0)

    def settings(self, vocabulary: int) -> dict[str, Any]:
        """What of the config is the shape, by transformers' names.

        Raises:
            UserError: widths don't divide.
        """
        width = self.width or 64 * self.depth
        heads = self.heads or max(1, round(width / 64))
        groups = self.kv_heads or heads
        if width % heads or (width // heads) % 2:
            raise UserError(
                f"a width of {width} can't be cut into {heads} heads of an even width. Set `heads` to a divisor of it."
            )
        if heads % groups:
            raise UserError(f"{heads} heads can't share {groups} key and value heads: `kv_heads` must divide `heads`.")
        return {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": self.inner or -(-width * 8 // 3 // 64) * 64,
            "num_hidden_layers": self.depth,
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "head_dim": width // heads,
            "tie_word_embeddings": self.tied,
        }


def learning_rate(config: PretrainedConfig) -> float:
    """The peak learning rate that goes with a width: 3e-3 at 128."""
    return min(1e-2, 3e-3 * 128 / config.hidden_size)
