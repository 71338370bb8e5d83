"""GGUF in and out: the same logits, the same tokens, the same end of a turn; or a refusal in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    set_seed,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from engine.errors import UserError
from tests.training.tiny import TEXT, tokenizer
from training.models.gguf import rotary
from training.models.gguf.from_gguf import read
from training.models.gguf.to_gguf import write

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% if m['role'] == 'assistant' %}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "vocab_size": 320, "max_position_embeddings": 256, "eos_token_id": 4, "pad_token_id": 0, "bos_token_id": 0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
SAID = "The capital of Peru is Lima, 2024: naïve 東京 🙂\n\n  twice"
IDS = torch.arange(200)[None] % 300


def save(folder: Path, config: Any, made: Any = None, dtype: Any = torch.float32) -> Any:
    set_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)  # biases and norms are to be seen
    model.save_pretrained(folder)
    if made is None:
        made = tokenizer()
        made.chat_template, made.eos_token = TEMPLATE, "<|end|>"
    made.save_pretrained(folder)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SHAPE, tie_word_embeddings=True),
        LlamaConfig(**{**SHAPE, "head_dim": 16}, tie_word_embeddings=False, rope_parameters=LLAMA3),
        LlamaConfig(**SHAPE, rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}),
        MistralConfig(**SHAPE, sliding_window=None),
        Qwen2Config(**SHAPE, tie_word_embeddings=True),
        Qwen3Config(**SHAPE, tie_word_embeddings=True),
    ],
    ids=["llama", "llama3", "linear", "mistral", "qwen2", "qwen3"],
)
def test_what_is_written_is_read_as_the_same_model(config: Any, tmp_path: Path) -> None:
    given, back = tmp_path / "given", tmp_path / "back"
    model = save(given, config)
    write(given, tmp_path / "it.gguf", "mine")
    facts = read(tmp_path / "it.gguf", back)
    assert facts["name"] == "mine" and facts["dtype"] == "float32" and facts["quantization"] is None
    torch.testing.assert_close(logits(load(back)), logits(model), rtol=0, atol=0)
    ours, theirs = AutoTokenizer.from_pretrained(given), AutoTokenizer.from_pretrained(back)
    turns = [{"role": "user", "content": SAID}, {"role": "assistant", "content": "Yes."}]
    assert theirs(SAID)["input_ids"] == ours(SAID)["input_ids"] and theirs.get_vocab() == ours.get_vocab()
    assert theirs.apply_chat_template(turns, return_dict=False) == ours.apply_chat_template(turns, return_dict=False)
    assert theirs.eos_token == "<|end|>" and load(back).generation_config.eos_token_id == 4


def sentencepiece(before: bool) -> Any:
    """A BPE over characters with bytes to fall back on, as Llama 2 and Mistral have it; `before`: a space goes before a text."""
    vocabulary = {
        token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))])
    }
    merges: list[tuple[str, str]] = []
    for token in ["▁", *"abcdefghilmnoprstuwyTPLI.,:"]:
        vocabulary[token] = len(vocabulary)
    pairs = [("▁", "t"), ("h", "e"), ("i", "s"), ("▁", "c"), ("i", "t"), ("a", "l"), ("L", "i"), ("▁", "is"), ("m", "a"), ("▁t", "he"),
             ("a", "p"), ("Li", "ma"), ("▁c", "ap"), ("it", "al"), ("▁cap", "ital")]  # fmt: skip
    for a, b in pairs:
        vocabulary[a + b] = len(vocabulary)
        merges.append((a, b))
    from tokenizers import Tokenizer, decoders, models, normalizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    raw: Any = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = [normalizers.Prepend("▁")] if before else []
    raw.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if before else []),
        ]
    )
    raw.post_processor = TemplateProcessing(single=["<s>", "$A"], pair=["<s>", "$A", "$B"], special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("before", [True, False])
def test_a_sentencepiece_tokenizer_cuts_as_before(before: bool, tmp_path: Path) -> None:
    made = sentencepiece(before)
    save(tmp_path / "given", LlamaConfig(**SHAPE), made)
    write(tmp_path / "given", tmp_path / "it.gguf", "mine")
    fields = gguf.GGUFReader(tmp_path / "it.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "llama" and fields["tokenizer.ggml.add_bos_token"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert kinds[:4] == [2, 3, 3, 6] and kinds[made.convert_tokens_to_ids("▁capital")] == 1 and kinds[-1] == 5
    read(tmp_path / "it.gguf", tmp_path / "back")
    back = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert back.get_vocab() == made.get_vocab()
    for text in (SAID, "the capital is Lima.", "  it is"):
        assert back(text)["input_ids"] == made(text)["input_ids"]
        assert back.decode(back(text)["input_ids"], skip_special_tokens=True) == text
    assert made.convert_tokens_to_ids("▁capital") in made("the capital")["input_ids"]


@pytest.mark.parametrize(("dtype", "rounding"), [("f16", 2**-11), ("bf16", 2**-8)])
def test_weights_are_rounded_to_the_type_that_is_asked_for(dtype: Any, rounding: float, tmp_path: Path) -> None:
    model = save(tmp_path / "given", LlamaConfig(**SHAPE))
    write(tmp_path / "given", tmp_path / "it.gguf", "mine", dtype)
    read(tmp_path / "it.gguf", tmp_path / "back")
    back = load(tmp_path / "back")
    assert back.dtype == {"f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    for name, weight in back.state_dict().items():
        torch.testing.assert_close(weight.float(), model.state_dict()[name], rtol=rounding, atol=1e-6)


# -- a file as llama.cpp's converter lays it out, written by the test itself -------------------------------------------


def tiny_file(file: Path, model: Any, made: Any, extra: dict[str, np.ndarray] | None = None, **stated: Any) -> None:
    """A GGUF of a tiny Llama in float32, with rows of queries and keys side by side in pairs."""
    writer = gguf.GGUFWriter(file, "llama")
    config = model.config
    writer.add_name("Tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
             "up_proj": "ffn_up", "down_proj": "ffn_down", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    for name, weight in model.state_dict().items():
        values, parts = weight.numpy(), name.split(".")
        if name == "lm_head.weight":
            continue
        if parts[-2] in ("q_proj", "k_proj"):
            half = config.head_dim // 2
            order = [h * config.head_dim + i + s * half for h in range(len(values) // config.head_dim) for i in range(half) for s in (0, 1)]  # fmt: skip
            values = values[order]
        place = {"embed_tokens": "token_embd", "norm": "output_norm"}.get(
            parts[-2]
        ) or f"blk.{parts[2]}.{names[parts[-2]]}"
        writer.add_tensor(f"{place}.weight", np.ascontiguousarray(values))
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    spelled = sorted(made.get_vocab().items(), key=lambda item: item[1])
    special = made.added_tokens_decoder
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(stated.get("pre", "gpt-2"))
    writer.add_token_list([token for token, _ in spelled])
    writer.add_token_types([3 if id in special else 1 for _, id in spelled])
    merges = __import__("json").loads(made.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(stated.get("eos", 0))
    writer.add_bos_token_id(0)
    if "bos" in stated:
        writer.add_add_bos_token(stated["bos"])
    if "template" in stated:
        writer.add_chat_template(stated["template"])
    for key, value in stated.get("keys", {}).items():
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint16(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tiny(folder: Path, made: Any = None) -> Any:
    made = made or tokenizer()
    return save(folder, LlamaConfig(**{**SHAPE, "vocab_size": len(made)}, tie_word_embeddings=True), made)


def test_a_file_gives_the_model_it_was_made_from(tmp_path: Path) -> None:
    model, made = tiny(tmp_path / "given"), tokenizer()
    tiny_file(tmp_path / "no-suffix", model, made, template=TEMPLATE, keys={"general.license": "apache-2.0"})
    facts = read(tmp_path / "no-suffix", tmp_path / "back")
    assert facts == {
        "kind": "Model", "name": "Tiny", "architecture": "llama", "quantization": None, "dtype": "float32",
        "license": "apache-2.0",
    }  # fmt: skip
    with torch.no_grad():
        ids = torch.tensor([made.encode(TEXT)])
        torch.testing.assert_close(load(tmp_path / "back")(ids).logits, model(ids).logits, rtol=0, atol=0)
    config = (tmp_path / "back" / "config.json").read_text()
    assert "quantization" not in config and str(tmp_path) not in config and "Tiny" not in config


def test_answers_end_where_the_template_ends_a_turn(tmp_path: Path) -> None:
    made = tokenizer()
    tiny_file(tmp_path / "it.gguf", tiny(tmp_path / "given"), made, template=TEMPLATE, eos=0)
    read(tmp_path / "it.gguf", tmp_path / "back")
    assert AutoTokenizer.from_pretrained(tmp_path / "back").eos_token == "<|end|>"
    assert load(tmp_path / "back").generation_config.eos_token_id == [made.convert_tokens_to_ids("<|end|>"), 0]


def test_control_tokens_outside_the_byte_alphabet_stay_whole(tmp_path: Path) -> None:
    made = tokenizer()
    made.add_special_tokens(
        {"additional_special_tokens": ["<｜User｜>", "<｜end of it｜>"]}, replace_extra_special_tokens=False
    )
    user, end = (made.convert_tokens_to_ids(token) for token in ("<｜User｜>", "<｜end of it｜>"))
    tiny_file(tmp_path / "it.gguf", tiny(tmp_path / "given", made), made, eos=end, bos=True)
    read(tmp_path / "it.gguf", tmp_path / "back")
    back = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert len(back) == len(made) and back.eos_token_id == end and back.eos_token == "<｜end of it｜>"
    assert back(f"<｜User｜>{SAID}<｜end of it｜>")["input_ids"] == [0, user, *made.encode(SAID), end]
    assert back.decode([user, *made.encode(SAID)], skip_special_tokens=True) == SAID


def test_digits_are_cut_one_by_one_where_the_file_says_so(tmp_path: Path) -> None:
    """Merges over digits are known, so that only the pre-tokenizer keeps them apart."""
    made = tokenizer()
    raw = made.backend_tokenizer
    described = __import__("json").loads(raw.to_str())
    described["model"]["merges"].append(["2", "0"])
    described["model"]["vocab"]["20"] = len(made)
    made = type(made)(
        tokenizer_object=type(raw).from_str(__import__("json").dumps(described)), eos_token="<|endoftext|>"
    )
    assert "20" in made.tokenize("2024")
    tiny_file(tmp_path / "it.gguf", tiny(tmp_path / "given", made), made, pre="smollm")
    read(tmp_path / "it.gguf", tmp_path / "back")
    back = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert back.tokenize("in 2024") == ["in" if "in" in made.get_vocab() else "i", *back.tokenize("in 2024")[1:]]
    assert back.tokenize("2024") == ["2", "0", "2", "4"]
    write(tmp_path / "back", tmp_path / "again.gguf", "again")
    fields = gguf.GGUFReader(tmp_path / "again.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"


@pytest.mark.parametrize(
    ("stated", "extra", "words"),
    [
        ({"pre": "of-my-own"}, {}, "pre-tokenizer `of-my-own`"),
        ({}, {"blk.0.attn_q.bias": np.ones(32, np.float32)}, "weights, and"),
        ({}, {"rope_freqs.weight": np.array([1, 2, 3, 4], np.float32)}, "rotary"),
        ({"keys": {"llama.rope.scaling.type": "longrope"}}, {}, "rotary"),
        ({"keys": {"split.count": 3}}, {}, "gguf-split"),
    ],
)
def test_what_would_be_left_out_is_refused(stated: Any, extra: Any, words: str, tmp_path: Path) -> None:
    tiny_file(tmp_path / "it.gguf", tiny(tmp_path / "given"), tokenizer(), extra, **stated)
    with pytest.raises(UserError, match=words):
        read(tmp_path / "it.gguf", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_damaged_file_is_refused_in_words(tmp_path: Path) -> None:
    tiny_file(tmp_path / "it.gguf", tiny(tmp_path / "given"), tokenizer())
    whole = (tmp_path / "it.gguf").read_bytes()
    for name, data in {
        "empty": b"",
        "other": b"PK\x03\x04",
        "head": whole[:40],
        "half": whole[: len(whole) // 2],
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            read(tmp_path / name, tmp_path / "back")


def test_llama3_divides_frequencies_as_transformers_does() -> None:
    config = LlamaConfig(**{**SHAPE, "head_dim": 64}, rope_parameters=LLAMA3)
    plain = 1 / 10_000.0 ** (np.arange(0, 64, 2) / 64)
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    ours = rotary.divisors(LLAMA3, 64)
    np.testing.assert_allclose(plain / ours, theirs.numpy(), rtol=1e-5)
    assert rotary.stated({}, ours, 10_000.0, 64) == LLAMA3


# -- what can't be written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=320), "architecture is `gpt2`"),
        (LlamaConfig(**SHAPE, attention_bias=True), "biases"),
        (MistralConfig(**SHAPE, sliding_window=64), "64 tokens at a time"),
        (LlamaConfig(**SHAPE, hidden_act="gelu"), "activation is `gelu`"),
        (LlamaConfig(**SHAPE, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), "`dynamic`"),
    ],
)
def test_a_model_that_has_no_place_in_gguf_is_refused(config: Any, words: str, tmp_path: Path) -> None:
    save(tmp_path / "given", config)
    with pytest.raises(UserError, match=words):
        write(tmp_path / "given", tmp_path / "it.gguf", "mine")
    assert not (tmp_path / "it.gguf").exists()


def test_a_tokenizer_that_has_no_name_in_gguf_is_refused(tmp_path: Path) -> None:
    made = tokenizer()
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    save(tmp_path / "given", LlamaConfig(**SHAPE), made)
    with pytest.raises(UserError, match="gpt-2, smollm, llama-bpe"):
        write(tmp_path / "given", tmp_path / "it.gguf", "mine")
