"""The chat templates that TRL ships, each with its own special tokens on a tiny tokenizer: what is learnt with each."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

# What stands between brackets of these kinds is a token of its own in the models that the templates are from; XML is not.
SPECIAL = re.compile(
    r"<\|[^|<>\s'\"{}]+\|>|<｜[^｜<>]+｜>|<\|[a-z_]+>|<[a-z_]+\|>|<\|\"\|>|<(?:start|end)_of_(?:turn|utterance)>|\[gMASK\]|<sop>"
)
# Name -> begin and end of a sequence, where they are not those of ChatML.
BORDERS = {
    "cohere": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "cohere2": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "gemma": ("<bos>", "<eos>"),
    "diffusion_gemma": ("<bos>", "<eos>"),
    "glm4moe": (None, "<|endoftext|>"),
    "gptoss": ("<|startoftext|>", "<|return|>"),
    "idefics3": ("<|begin_of_text|>", "<end_of_utterance>"),
    "lfm2": ("<|startoftext|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>"),
    "llava_next": ("<s>", "</s>"),
    "muse_glimmer": ("<|begin_of_text|>", "<|end_of_text|>"),
    "phi3": ("<s>", "<|endoftext|>"),
    "smolvlm": ("<|im_start|>", "<end_of_utterance>"),
}
CHATML = ("<|endoftext|>", "<|im_end|>")


@cache
def _texts() -> dict[str, str]:
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    return {file.stem: file.read_text() for file in sorted(folder.glob("*.jinja")) if "training" not in file.stem}


def names() -> list[str]:
    """Every chat template that TRL ships; its variants for training are not counted."""
    return list(_texts())


def tokenizer(name: str) -> Any:
    """A byte-level tokenizer with this template and the special tokens that it writes, and no other."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    family = max((known for known in BORDERS if name.startswith(known)), key=len, default="")
    begin, end = BORDERS.get(family, CHATML)
    raw = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=end, bos_token=begin)
    made.add_tokens(sorted(set(SPECIAL.findall(_texts()[name]))), special_tokens=True)
    made.chat_template = _texts()[name]
    return made
