"""What the rows of `benchmarks.gpu` work on: models of random weights, random text, a store. Nothing is fetched.

The text is of words that a tokenizer of this file has as one token each, so that a text of so many words has so many tokens.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.parts.claims import artifact
from benchmarks.parts.gpu.rows import Skipped
from engine.stage.job import Job
from engine.store.artifact import Artifact
from engine.store.digest import digest_folder, digest_json
from engine.store.store import Store
from pipelines.tokenize.shards import write_shard
from training.pretrain.llama import decoder_config
from training.pretrain.size import Size

SIZES = {
    "350M": Size(depth=24, width=1024, heads=16, inner=2752),
    "1.3B": Size(depth=24, width=2048, heads=16, inner=5504),
    "7B": Size(depth=32, width=4096, heads=32, inner=11008, tied=False),
}
TINY = Size(depth=2, width=64, heads=2, inner=128)
SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|unk|>")
END = 1
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }} <|end|>"
    "{% endgeneration %}{% else %}{{ m['content'] }} <|end|>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Scene:
    """What a row is given.

    Attributes:
        folder: the row's own.
        data: kept for the rows to come: models, which take long to make.
        tiny: small, on whatever is here, to see that it runs; the numbers mean nothing.
        tell: keeps numbers of the row; what is told again replaces what was told.

    Raises:
        Skipped: there is no GPU, and it is not to be tiny.
    """

    folder: Path
    data: Path
    tiny: bool
    tell: Callable[..., None]

    def __post_init__(self) -> None:
        gpu = torch.cuda.is_available()
        if not gpu and not self.tiny:
            raise Skipped("there is no NVIDIA GPU here (`--tiny` shows on any machine that it runs)")
        self.tell(device=torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine())

    @cached_property
    def store(self) -> Store:
        return Store(str(self.folder / "store"))

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def size(self, name: str) -> Size:
        return TINY if self.tiny else SIZES[name]

    def whole(self, number: int, tiny: int) -> int:
        return tiny if self.tiny else number

    @property
    def length(self) -> int:
        """Tokens of a model's context."""
        return self.whole(2048, 64)

    @property
    def vocabulary(self) -> int:
        return self.whole(32_000, 300)

    @property
    def ends(self) -> list[int]:
        """Ids that end an answer. One in 128 or so of all: answers of random weights end at all lengths, as real ones do."""
        return [END, *range(100, 100 + self.vocabulary // 128)]

    def tokenizer(self) -> Any:
        """Ids below 5 are special; `wN` is the id N."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        names = {token: i for i, token in enumerate(SPECIAL)}
        inner: Any = Tokenizer(
            models.WordLevel(
                {**names, **{f"w{i}": i for i in range(len(names), self.vocabulary)}}, unk_token=SPECIAL[-1]
            )
        )
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        inner.add_special_tokens(list(SPECIAL[:4]))
        made = PreTrainedTokenizerFast(
            tokenizer_object=inner, eos_token="<|end|>", pad_token="<|pad|>", unk_token="<|unk|>"
        )
        made.chat_template = TEMPLATE
        return made

    def text(self, random: np.random.Generator, words: int) -> str:
        return " ".join(f"w{i}" for i in random.integers(len(SPECIAL), self.vocabulary, words))

    def lengths(self, count: int, longest: int) -> list[int]:
        """Words of texts as people's lengths are spread: log-normal, the middle one a fifth of the longest, none beyond that."""
        drawn = np.random.default_rng(0).lognormal(np.log(longest / 5), 0.8, count)
        return drawn.clip(2, longest).astype(int).tolist()

    def tokens(self, blocks: int) -> Artifact:
        """Token shards of random ids."""
        folder, random = self.folder / "tokens", np.random.default_rng(0)
        (folder / "data").mkdir(parents=True)
        self.tokenizer().save_pretrained(folder / "tokenizer")
        ids = random.integers(len(SPECIAL), self.vocabulary, (blocks, self.length)).astype(np.uint16)
        write_shard(folder / "data" / "00000.arrow", [f"{i:032x}" for i in range(blocks)], [[] for _ in ids], ids, [[0] for _ in ids])  # fmt: skip
        return self._outside("TokenBlock", folder)

    def model(self, name: str) -> Artifact:
        """A Llama of this size with random weights in bfloat16, and the tokenizer."""
        folder = self.data / name
        if not folder.exists():
            from transformers import AutoModelForCausalLM

            config = decoder_config(self.size(name), "llama", self.vocabulary, self.length, END, 0)
            config.eos_token_id = self.ends
            torch.manual_seed(0)
            with self.device:
                made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            made.save_pretrained(partial)
            self.tokenizer().save_pretrained(partial)
            partial.replace(folder)
            del made
            self.forget()
        return self._outside("Model", folder)

    def rows(self, kind: str, rows: list[dict[str, Any]]) -> Artifact:
        return artifact(self.store, kind, rows)

    def job(self, name: str, emit: Callable[[dict[str, Any]], None], **inputs: Artifact) -> Job:
        """What a stage is handed."""
        return Job(self.store, name, "Model", {port: {port: one} for port, one in inputs.items()}, 0, emit=emit)

    def forget(self) -> None:
        """Give back what nobody holds, and count memory anew."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def wait(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _outside(self, kind: str, folder: Path) -> Artifact:
        """An artifact that stands in this folder. A model's is named as a hub's is, whose files are not digested whenever it is opened:
        of gigabytes that takes seconds, and is no part of what is measured."""
        key = digest_json(digest_folder(folder) if kind == "TokenBlock" else str(folder))
        place = {"hub": str(folder)} if kind == "Model" else {"external": str(folder)}
        return Artifact(self.store, f"external-{key[:16]}", {"key": key, "schema": kind, "digest": key, "rows": 0, "files": {}, **place})  # fmt: skip
