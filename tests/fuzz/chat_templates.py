"""Chat templates of models, asked what they make of turns."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "a": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<eos>")


def seeds() -> list[bytes]:
    own = (ROOT / "training/sft/chat_template.jinja").read_bytes()
    chatml = b"{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    return [own, chatml + b"{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"]


def attempt(data: bytes, folder: Path) -> None:
    from generators.text.chat_template import ChatTemplate

    ChatTemplate(_tokenizer(), data.decode("utf-8", "replace") or "x")
