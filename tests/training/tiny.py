"""Tiny tokenizers, shards and models for the tests of this room: seconds on one core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from engine.execution.worker import carry_out
from engine.stage.stage import Stage
from engine.store.artifact import Artifact
from engine.store.digest import digest_json
from engine.store.schema import row_id
from engine.store.store import Store

SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
TEXT = "The capital of France is Paris. The capital of Japan is Tokyo. What is the capital of Peru? It is Lima. "
PRETRAIN: dict[str, Any] = {
    "size": {"depth": 2, "width": 32, "heads": 2},
    "batch": 4,
    "steps": 12,
    "lr": 0.01,
    "seed": 1,
    "dtype": "float32",
}
CITIES = {"France": "Paris", "Japan": "Tokyo", "Peru": "Lima", "Italy": "Rome", "Cuba": "Havana", "Egypt": "Cairo"}
SFT: dict[str, Any] = {"lr": 0.01, "batch": 4, "steps": 8, "seed": 3}


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CONVERSATIONS = [
    {
        "id": f"{i:032x}",
        "parents": [],
        "messages": [
            *([turn("system", "Be brief.")] if i % 2 else []),
            turn("user", f"What is the capital of {country}?"),
            turn("assistant", f"{city}."),
            *([turn("user", "Sure?"), turn("assistant", "Yes.")] if i % 3 == 0 else []),
        ],
    }
    for i, (country, city) in enumerate(CITIES.items())
]


def tokenizer(size: int = 300) -> Any:
    """A byte-level BPE tokenizer with the project's special tokens and no chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=SPECIAL[0], pad_token=SPECIAL[0], extra_special_tokens=SPECIAL[1:]
    )


def write_shard(file: Path, tokens: np.ndarray, starts: list[list[int]] | None = None) -> None:
    """An Arrow IPC shard of these blocks, (N, T)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    width = pa.uint16() if tokens.max() < 2**16 else pa.uint32()
    column = pa.FixedSizeListArray.from_arrays(pa.array(tokens.ravel(), width), tokens.shape[1])
    table = pa.table({
        "id": [row_id("TokenBlock", file.name, i) for i in range(len(tokens))],
        "parents": pa.array([[] for _ in tokens], pa.list_(pa.string())),
        "tokens": column,
        "starts": pa.array(starts or [[0] for _ in tokens], pa.list_(pa.int32())),
    })  # fmt: skip
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=5):
            writer.write_batch(batch)


class Blocks(Stage):
    """Gives a TokenBlock artifact: the text over and over, packed, some of it held out."""

    gives = "TokenBlock"
    block: int = 32
    blocks: int = 24
    held_out: int = 4
    beyond: bool = False

    def run(self, job: Any) -> None:
        made = tokenizer()
        made.save_pretrained(job.output / "tokenizer")
        separator = made.convert_tokens_to_ids(SPECIAL[0])
        stream = [separator, *made.encode(TEXT)] * 200
        total = self.blocks + self.held_out
        tokens = np.array(stream[: total * self.block]).reshape(total, self.block)
        if self.beyond:
            tokens[0, 3] = len(made)
        starts = [[0, *np.flatnonzero(row == separator).tolist()] for row in tokens]
        half = self.blocks // 2
        for name, rows in {
            "data/00000.arrow": slice(0, half),
            "data/00001.arrow": slice(half, self.blocks),
            "validation/00000.arrow": slice(self.blocks, total),
        }.items():
            if len(tokens[rows]):
                write_shard(job.output / name, tokens[rows], starts[rows])
        job.summary(vocab_size=len(made), tokens=int(tokens.size), blocks=self.blocks, bytes=0)


def blocks(store: Store, **config: Any) -> Artifact:
    return carry_out(store, "blocks", Blocks(**config), {})


class Base(Stage):
    """Gives a model of random weights with the tokenizer of these tests."""

    gives = "Model"
    width: int = 32
    depth: int = 2
    context: int = 128

    def run(self, job: Any) -> None:
        from transformers import AutoModelForCausalLM, set_seed

        from training.models.load import save
        from training.pretrain.llama import decoder_config
        from training.pretrain.size import Size

        made = tokenizer()
        set_seed(0)
        config = decoder_config(
            Size(depth=self.depth, width=self.width, heads=2),
            "llama",
            len(made),
            self.context,
            made.eos_token_id,
            made.pad_token_id,
        )
        save(job, AutoModelForCausalLM.from_config(config), made)


def base(store: Store, **config: Any) -> Artifact:
    return carry_out(store, f"base{digest_json(config)[:8]}", Base(**config), {})
