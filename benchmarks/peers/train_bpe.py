"""CPU seconds to train a byte-level BPE of 32,000 tokens by one trainer, in a process of its own.

    python train_bpe.py TRAINER TEXTS.parquet OUT.json [FOLDER OF FLYWHEEL]

`flywheel`, `tokenizers`, `gigatoken`. What was made is told as a digest of its merges.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

SIZE = 32_000
SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
Trained = tuple[Callable[[], Any], Callable[[Any], Any]]  # what is measured, and the merges of what it made


def flywheel(texts: list[str]) -> Trained:
    from pipelines.tokenize.bpe import train_bpe

    train_bpe(iter([["a b"]]), 300)  # compiles
    return lambda: train_bpe(iter([texts]), SIZE), lambda made: json.loads(made.to_str())["model"]["merges"]


def tokenizers(texts: list[str]) -> Trained:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made: Any = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False
    )
    return lambda: made.train_from_iterator(iter([texts]), trainer), lambda _: json.loads(made.to_str())["model"][
        "merges"
    ]


def gigatoken(texts: list[str]) -> Trained:
    import gigatoken as library  # pyright: ignore[reportMissingImports]

    data = SPECIAL[0].join(texts).encode()
    train = library.train_bpe
    return lambda: train(data, SIZE, SPECIAL, separator=SPECIAL[0].encode()), lambda made: [
        [str(left), str(right)] for left, right in made[1]
    ]


def main() -> None:
    name, source, out, *root = sys.argv[1:]
    sys.path[:0] = root
    texts: list[str] = pq.read_table(source, columns=["text"]).column("text").to_pylist()
    train, merges_of = globals()[name](texts)
    before = time.process_time()
    made = train()
    seconds = time.process_time() - before
    merges = merges_of(made)
    told = {"cpu_s": round(seconds, 2), "merges": hashlib.sha256(json.dumps(merges).encode()).hexdigest()[:16]}
    Path(out).write_text(json.dumps(told))


if __name__ == "__main__":
    main()
