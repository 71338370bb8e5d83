"""A GGUF file, llama.cpp's format, as a model in the Hugging Face layout: weights, configuration, tokenizer, chat template.

transformers reads the file. What it leaves out without a word is put right here or refused: stretched rotary embeddings, how a
tokenizer cuts texts, control tokens outside the byte alphabet, the token that ends a turn, and weights it has no place for.
Quantised weights come out in bfloat16, as close to the published ones as the file is; others in their own type.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, cast

import torch
from gguf import GGMLQuantizationType, GGUFReader, TokenType
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from engine.errors import UserError
from generators.text.chat_template import ChatTemplate
from training.models.gguf import pretokenizers, rotary
from training.models.load import quiet

MAGIC = b"GGUF"
FLOATS = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}


def read(file: Path, folder: Path) -> dict[str, Any]:
    """Write the model in this file into a folder in the Hugging Face layout.

    The entry `GGUF` of `flywheel.importers`: files that begin with these four bytes are brought in by it.

    Args:
        folder: is made where it is missing.

    Returns:
        facts: `kind` of artifact, the `name` that the file gives the model, its `architecture`, the `quantization` its weights
        had, the `dtype` they have now, and the `license` if one is stated.

    Raises:
        UserError: the file is damaged, one of several, or holds what can't be brought over whole.
    """
    quiet()
    header = _open(file)
    architecture = _value(header, "general.architecture")
    try:
        model = _model(file, header)
        tokenizer = _tokenizer(file, header)
    except (OSError, ValueError, KeyError, IndexError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{file}: transformers can't read a GGUF model of architecture `{architecture}` from it: "
            f"{' '.join(str(error).split())[:300] or type(error).__name__}"
        ) from error
    _end_turns(model, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    most = _most(header)
    return {
        "kind": "Model",
        "name": str(_value(header, "general.name") or file.stem),
        "architecture": architecture,
        "quantization": None if most in FLOATS else most.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "license": _value(header, "general.license"),
    }


def _open(file: Path) -> GGUFReader:
    with file.open("rb") as opened:
        if (found := opened.read(4)) != MAGIC:
            raise UserError(f"{file} is no GGUF file: it begins with {found!r}, expected {MAGIC!r}.")
    try:
        header = GGUFReader(file)
    except Exception as error:  # it is parsed by counting bytes: whatever is wrong there shows as any error
        raise UserError(f"{file} is damaged or incomplete: {error}. Fetch it again.") from error
    if (_value(header, "split.count") or 1) > 1:
        raise UserError(
            f"{file} is one of {_value(header, 'split.count')} files of a model. Join them with llama.cpp's `gguf-split --merge`."
        )
    if not _value(header, "general.architecture") or not header.tensors:
        raise UserError(f"{file} holds no model: it states no architecture, or has no weights.")
    return header


def _value(header: GGUFReader, key: str) -> Any:
    field = header.fields.get(key)
    return None if field is None else field.contents()


def _most(header: GGUFReader) -> GGMLQuantizationType:
    """The type that most weights have."""
    counts: Counter[GGMLQuantizationType] = Counter()
    for tensor in header.tensors:
        counts[tensor.tensor_type] += int(tensor.n_elements)
    return counts.most_common(1)[0][0]


def _model(file: Path, header: GGUFReader) -> Any:
    dtype = FLOATS.get(_most(header), torch.bfloat16)
    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    config: Any = AutoConfig.from_pretrained(**place, trust_remote_code=False)
    width = _value(header, f"{config.model_type}.attention.key_length")
    if width and hasattr(config, "head_dim"):  # read for some architectures only, else the class's default
        config.head_dim = width
    read_model, seen = cast(
        "tuple[Any, dict[str, Any]]",
        AutoModelForCausalLM.from_pretrained(
            **place, config=config, dtype=dtype, output_loading_info=True, trust_remote_code=False
        ),
    )
    config, weights = read_model.config, read_model.state_dict()
    del config.quantization_config  # what is saved is not quantised any more
    vars(config).pop("_model_name_or_path", None)  # the reader's; the name is among the facts
    config._name_or_path = ""
    divisors = next((t for t in header.tensors if t.name == rotary.DIVISORS), None)
    there = sum(int(t.n_elements) for t in header.tensors if t is not divisors)
    placed = sum(p.numel() for p in read_model.parameters())
    if seen["missing_keys"] or there != placed:
        raise UserError(
            f"{file} holds {there:,} weights, and {placed:,} have a place in transformers' {type(read_model).__name__}"
            + (f" ({', '.join(sorted(seen['missing_keys'])[:3])} would be random)" if seen["missing_keys"] else "")
            + ". Start from the model's folder in the Hugging Face layout."
        )
    if hasattr(config, "rope_parameters") and "rope_theta" in (config.rope_parameters or {}):
        prefix = f"{_value(header, 'general.architecture')}.rope.scaling."
        keys = {key.removeprefix(prefix): _value(header, key) for key in header.fields if key.startswith(prefix)}
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        config.rope_parameters = rotary.stated(
            keys, None if divisors is None else divisors.data, config.rope_parameters["rope_theta"], width
        )
    with torch.device("meta"):  # transformers won't save a model that it counts as quantised
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = read_model.generation_config
    model.generation_config._from_model_config = False
    return model


def _tokenizer(file: Path, header: GGUFReader) -> PreTrainedTokenizerFast:
    read_tokenizer: Any = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False)
    backend: Any = read_tokenizer.backend_tokenizer
    tokens: list[str] = _value(header, "tokenizer.ggml.tokens")
    plain = isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace)  # SentencePiece's, as Llama 2 has it
    bytewise = _value(header, "tokenizer.ggml.model") == "gpt2"
    if not bytewise and not plain:
        return read_tokenizer
    kinds: list[int] = _value(header, "tokenizer.ggml.token_type") or [TokenType.NORMAL] * len(tokens)
    backend = _with_own_tokens(backend, tokens, kinds)
    if bytewise:
        pretokenizers.put(backend, _value(header, "tokenizer.ggml.pre") or "gpt-2")
    else:  # transformers' own puts no space before a text that begins with one; llama.cpp and the published files do
        before = _value(header, "tokenizer.ggml.add_space_prefix") is not False
        first, strip = ([normalizers.Prepend("▁")], [decoders.Strip(" ", 1, 0)]) if before else ([], [])
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: _value(header, f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    bos, begins = tokens[ids["bos"] or 0], _value(header, "tokenizer.ggml.add_bos_token")
    backend.post_processor = (
        TemplateProcessing(single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, ids["bos"])])
        if ids["bos"] is not None and (plain if begins is None else begins)
        else None
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{name}_token": tokens[id] for name, id in ids.items() if id is not None},
    )
    tokenizer.chat_template = _value(header, "tokenizer.chat_template")
    return tokenizer


def _with_own_tokens(backend: Tokenizer, tokens: list[str], kinds: list[int]) -> Tokenizer:
    """The tokenizer with every control and user-defined token whole, under its own id, and without what fills unused ids.

    transformers spells a token with a character outside the byte alphabet (`<｜User｜>`) in bytes, or adds it once more; and
    it takes `[PAD315]` for a token.
    """
    described = json.loads(backend.to_str())
    vocabulary: dict[str, int] = described["model"]["vocab"]
    spelled = {id: token for token, id in vocabulary.items()}
    added = [entry for entry in described["added_tokens"] if entry["id"] < len(tokens)]
    known = {entry["id"] for entry in added}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for id, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED) and id not in known:
            vocabulary.pop(spelled[id], None)
            vocabulary[token] = id
            added.append({"id": id, "content": token, **plain, "special": kind == TokenType.CONTROL})
        elif kind == TokenType.UNUSED:
            vocabulary.pop(spelled[id], None)
    described["added_tokens"] = sorted(added, key=lambda entry: entry["id"])
    return Tokenizer.from_str(json.dumps(described))


def _end_turns(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Have answers end where the chat template ends the assistant's turn, besides where the file says that a text ends."""
    if not tokenizer.chat_template:
        return
    try:
        end = ChatTemplate(tokenizer).end
    except UserError:  # no Jinja
        return
    stated, found = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end)
    if isinstance(found, int) and found in tokenizer.added_tokens_decoder and found != stated:
        tokenizer.eos_token = end
        model.config.eos_token_id = found
        model.generation_config.eos_token_id = [found] + ([stated] if isinstance(stated, int) else [])
