"""`tokenize`: documents -> packed blocks of token ids, and the tokenizer that made them.

    tokenizer/          the tokenizer in the Hugging Face layout
    data/*.arrow        the blocks (see `pipelines.tokenize.shards`)
    validation/*.arrow  the blocks of held-out documents

Documents follow each other, each ended by `<|endoftext|>`, and the stream is cut into blocks; the last block is filled
up with `<|endoftext|>`, and how much that was is stated as `waste`. Or, with `packing: best_fit`, documents are cut only
where they are longer than a block (Ding et al. 2024, "Fewer truncations improve language modeling"): pieces go, the longest
first, where they leave the least room, and what is left over of each block is filled up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from engine.errors import UserError
from engine.stage.stage import Device, NotIdentity, Port, Stage, port
from engine.store.digest import digest_file
from pipelines.tokenize.special_tokens import SPECIAL


class Tokenize(Stage):
    """Train a byte-level BPE on the documents (or take one), encode them and pack them into blocks."""

    takes: ClassVar[dict[str, Port]] = {
        "documents": port("Document", many=True),
        "tokenizer": port("TokenBlock", "Model", optional=True),
    }
    gives: ClassVar[str] = "TokenBlock"
    phase: ClassVar[str] = "curation"
    work: ClassVar[str] = "pipelines.tokenize.work:tokenize"

    tokenizer: Annotated[str | None, NotIdentity] = Field(
        None,
        description="A folder in the Hugging Face layout, relative to the recipe, or a hub name. None: the one of the "
        "`tokenizer` input, or else one that is trained on the documents.",
    )
    vocab_size: int = Field(
        8192, ge=256 + len(SPECIAL), description="Of the tokenizer to train, special tokens included."
    )
    train_bytes: int = Field(
        1_000_000_000, ge=1, description="Train on about this many bytes of the documents at most."
    )
    block: int = Field(512, ge=2, description="Tokens of a block.")
    packing: Literal["stream", "best_fit"] = Field(
        "stream",
        description="`stream` cuts documents at the ends of blocks, `best_fit` only those longer than a block.",
    )
    validation: float = Field(0.0, ge=0, lt=1, description="Share of documents held out, chosen by their ids' digest.")

    def sources(self, base: str) -> dict[str, str]:
        if self.tokenizer is None:
            return {}
        folder = Path(base) / self.tokenizer
        if not folder.is_dir():
            if self.tokenizer.startswith((".", "/", "~")):
                raise UserError(f"there is no tokenizer folder {folder}; give a folder in the Hugging Face layout.")
            return {"tokenizer": f"hub:{self.tokenizer}"}

        return {f"tokenizer/{file.name}": digest_file(file) for file in sorted(folder.glob("*tok*")) if file.is_file()}

    def forecast(self, given: dict[str, list[dict[str, Any]]], device: Device) -> dict[str, Any]:
        trains = self.tokenizer is None and not given.get("tokenizer")
        return {"block": self.block, "summary": {"vocab_size": self.vocab_size} if trains else {}}
