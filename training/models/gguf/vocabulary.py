"""A tokenizer, as GGUF holds it: tokens and what each is, how texts are cut and merged, and the ids that begin and end one.

Two kinds are written: byte-level BPE, with its merges and the name of its pre-tokenizer (llama.cpp's `gpt2`), and BPE over
characters with single bytes to fall back on, as SentencePiece makes it, where a score for each token stands for the merges (`llama`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
from transformers import AutoTokenizer, GenerationConfig

from engine.errors import UserError
from training.models.gguf import pretokenizers

SPACE = "▁"  # what SentencePiece writes for one
NEVER = -1e6  # score of a token that no merge makes


def add(writer: gguf.GGUFWriter, folder: Path, size: int) -> None:
    """Write the tokenizer in this folder into a file, for a model with so many ids.

    Raises:
        UserError: it is of another kind, or has more tokens than the model has ids.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    described: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model: dict[str, Any] = described["model"]
    if model["type"] != "BPE":
        raise UserError(
            f"this model can't be written as GGUF: its tokenizer is a {model['type']}. Expected a BPE over bytes, or over "
            "characters with bytes to fall back on. Export it without `--format gguf`."
        )
    tokens, kinds = _tokens(tokenizer, size, model["unk_token"] if model["byte_fallback"] else None)
    merges: list[list[str]] = [m if isinstance(m, list) else m.split(" ") for m in model["merges"]]
    if model["byte_fallback"]:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(tokens, merges))
        writer.add_add_space_prefix(_begins_with_space(described))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pretokenizers.name_of(tokenizer.backend_tokenizer))
        writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    for name, id in (("bos", tokenizer.bos_token_id), ("unk", tokenizer.unk_token_id), ("pad", tokenizer.pad_token_id)):
        if id is not None:
            getattr(writer, f"add_{name}_token_id")(id)
    _add_ends(writer, folder, tokenizer)
    writer.add_add_bos_token(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _tokens(tokenizer: Any, size: int, unknown: str | None) -> tuple[list[str], list[gguf.TokenType]]:
    """Every id's token and what it is; ids without one are unused."""
    tokens = [f"[PAD{i}]" for i in range(size)]
    kinds = [gguf.TokenType.UNUSED] * size
    added = tokenizer.added_tokens_decoder
    for token, id in tokenizer.get_vocab().items():
        if id >= size:
            raise UserError(f"the tokenizer has the token `{token}` under {id}, and the model {size} ids.")
        tokens[id] = token
        if token == unknown:
            kinds[id] = gguf.TokenType.UNKNOWN
        elif id in added:
            kinds[id] = gguf.TokenType.CONTROL if added[id].special else gguf.TokenType.USER_DEFINED
        elif unknown and len(token) == 6 and token.startswith("<0x"):
            kinds[id] = gguf.TokenType.BYTE
        else:
            kinds[id] = gguf.TokenType.NORMAL
    return tokens, kinds


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """A score for each token, higher for those that are merged earlier.

    Raises:
        UserError: merges that make one token stand apart, so that no score says the same.
    """
    first: dict[str, int] = {}
    order = [first.setdefault("".join(pair), rank) for rank, pair in enumerate(merges)]
    if order != sorted(order):
        raise UserError(
            "this model can't be written as GGUF: the merges of its tokenizer are in an order that no scores give. Export it "
            "without `--format gguf`."
        )
    return [-float(first[token]) if token in first else NEVER for token in tokens]


def _begins_with_space(described: dict[str, Any]) -> bool:
    """Whether a text gets a space before it.

    Raises:
        UserError: spaces are written in another way than SentencePiece's.
    """
    normalizer: dict[str, Any] = described["normalizer"] or {}
    steps: list[dict[str, Any]] = normalizer.get("normalizers") or ([normalizer] if normalizer else [])
    match described["pre_tokenizer"], [step["type"] for step in steps]:
        case {"type": "Metaspace", "replacement": "▁", "split": False, "prepend_scheme": scheme}, []:
            return scheme != "never"
        case None, ["Prepend", "Replace"] | ["Replace"] as kinds if steps[-1]["content"] == SPACE:
            return kinds[0] == "Prepend"
        case found, kinds:
            raise UserError(
                f"this model can't be written as GGUF: its tokenizer prepares texts by {kinds} and {found}, expected what "
                "SentencePiece does to spaces. Export it without `--format gguf`."
            )


def _add_ends(writer: gguf.GGUFWriter, folder: Path, tokenizer: Any) -> None:
    """What ends a text, and, where that is another token, what ends a turn."""
    ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    if (folder / "generation_config.json").exists():
        more = GenerationConfig.from_pretrained(folder).eos_token_id
        ends += [id for id in (more if isinstance(more, list) else [more]) if id is not None and id not in ends]
    if ends:
        writer.add_eos_token_id(ends[0])
    if len(ends) > 1:
        writer.add_eot_token_id(ends[1])
