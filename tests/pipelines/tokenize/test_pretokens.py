"""Ids by the cache against the ids of Hugging Face tokenizers, one by one."""

from __future__ import annotations

import itertools
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, settings
from hypothesis import given as for_all
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pipelines.kernels.characters import UNKNOWN, pretokens_table
from pipelines.kernels.compiled import kernel
from pipelines.texts.columns import texts_of
from pipelines.tokenize import pretokens
from pipelines.tokenize.bpe import train_bpe
from pipelines.tokenize.byte_level import ByteLevel, table
from pipelines.tokenize.pretokens import PretokenCache
from pipelines.tokenize.special_tokens import SPECIAL

FILES = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:40]
REAL = [file.read_text(encoding="utf-8") for file in FILES]
# As the tokenizer.json files of these models have them.
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_OSS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SPLIT = {"gpt2_split": GPT2, "llama3": CL100K % "{1,3}", "qwen2": CL100K % "", "gpt_oss": GPT_OSS}


def byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def in_family(model: str, family: str) -> Tokenizer:
    """A tokenizer with the vocabulary of one over GPT-2's pretokens, which cuts texts as another family does."""
    parts = json.loads(model)
    first: dict[str, Any] = {"type": "Digits", "individual_digits": True}
    if family in SPLIT:
        first = {"type": "Split", "pattern": {"Regex": SPLIT[family]}, "behavior": "Isolated", "invert": False}
    if family != "gpt2":
        steps = [first, byte_level(family == "smollm2")]
        parts["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    parts["model"]["ignore_merges"] = family == "llama3"
    if family == "qwen2":
        parts["normalizer"] = {"type": "NFC"}
        for token in ("<tool_call>", "<|fim|>"):
            index = len(parts["model"]["vocab"]) + len(parts["added_tokens"])
            plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
            parts["added_tokens"].append({"id": index, "content": token, **plain})
    made = Tokenizer.from_str(json.dumps(parts))
    made.encode_special_tokens = True
    return made


@pytest.fixture(scope="module")
def model() -> str:
    def texts() -> Iterator[list[str]]:
        yield [*REAL[:20], "naïve café 好的 don't we'll  \n\n x"]

    return train_bpe(texts(), 1500).to_str()


@pytest.fixture(scope="module", params=["gpt2", "smollm2", *SPLIT])
def tokenizer(request: pytest.FixtureRequest, model: str) -> Tokenizer:
    return in_family(model, request.param)


def cache_of(tokenizer: Tokenizer) -> PretokenCache:
    parts = ByteLevel.read(tokenizer.to_str())
    assert parts is not None
    return PretokenCache(tokenizer, parts)


def compare(tokenizer: Tokenizer, texts: list[str], cache: PretokenCache | None = None) -> PretokenCache:
    cache = cache or cache_of(tokenizer)
    expected = [one.ids for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    for _ in range(2):  # once learning, once knowing
        got = cache.encode(texts_of(pa.chunked_array([pa.array(["x", *texts]).slice(1)])))
        for text, ids, wanted in zip(texts, got.of_each(), expected, strict=True):
            assert ids.tolist() == wanted, text[:200]
    ended = cache.encode(texts_of(pa.array(texts)), 7)
    assert [ids.tolist() for ids in ended.of_each()] == [[*ids, 7] for ids in expected]
    return cache


def test_real_text(tokenizer: Tokenizer) -> None:
    cache = compare(tokenizer, [*REAL, ""])
    assert (cache.asked, cache.corrected, cache.whole) == (0, 0, 0)


def test_contractions_are_no_single_characters(tokenizer: Tokenizer) -> None:
    endings = ("s", "t", "m", "d", "re", "ve", "ll", "S", "RE", "lL", "\u017f", "x\u017f")
    alike = "".join(f"{chr(k * 0x10000 + ord(e[0]))} " for e in endings for k in (1, 2))
    compare(tokenizer, [" ".join(f"'{e}" for e in endings) + "\n'" + "\n'".join(endings) + alike, alike, "it'S we'Re'"])


def test_blocks_of_64_bytes_have_no_seams(tokenizer: Tokenizer) -> None:
    compare(
        tokenizer,
        [" " * k + word + " x" for k in range(50, 70) for word in ("don't", "é1好", "  \n\n ", "12345", "A\u00a0b")],
    )


def test_texts_do_not_look_at_their_neighbours(tokenizer: Tokenizer) -> None:
    compare(tokenizer, ["a ", " b", "c  ", "d", "\n ", "'s", "e'", "s", "1", "2", "f ", "'s", "\t", "g\n", "\n"])


@pytest.mark.parametrize("family", ["gpt2", "llama3"])
def test_what_the_tokenizer_says_counts(model: str, family: str) -> None:
    tokenizer = in_family(model, family)
    parts = ByteLevel.read(tokenizer.to_str())
    assert parts is not None
    nothing = table(np.zeros(0, np.uint64), np.zeros(0, np.uint64))
    wrong = replace(parts, merges=nothing[0], merge_shift=nothing[1])
    cache = compare(tokenizer, REAL[:5], PretokenCache(tokenizer, wrong))
    assert cache.asked >= cache.corrected > 1000
    wrong = replace(parts, byte_ids=np.roll(parts.byte_ids, 1))  # a right encoding of other bytes
    assert compare(tokenizer, REAL[:5], PretokenCache(tokenizer, wrong)).corrected > 1000


def test_a_vocabulary_beside_merges(model: str) -> None:
    """Without its last merges, a tokenizer that takes whole tokens as they are does so, and merges what it can of all others."""
    parts = json.loads(in_family(model, "llama3").to_str())
    parts["model"]["merges"] = parts["model"]["merges"][:300]
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    tokenizer.encode_special_tokens = True
    cache = compare(tokenizer, REAL)
    assert (cache.asked, cache.corrected, cache.whole) == (0, 0, 0)
    parts["model"]["ignore_merges"] = False
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    tokenizer.encode_special_tokens = True
    compare(tokenizer, REAL)


def test_keys_of_what_is_alike_differ() -> None:
    """Runs of two letters in any order, which a weak hash takes for one another where one begins as the other's length."""
    alike = [bytes(one) for size in range(1, 15) for one in itertools.product(b"12", repeat=size)]
    alike += [bytes([byte]) * size for byte in range(256) for size in range(1, 60)]
    alike = sorted(set(alike))
    data = np.frombuffer(b"".join([*alike, bytes(64)]), np.uint8)
    keys = np.empty(len(alike), np.uint64)
    kernel("pipelines.kernels.pretoken_table", "keys_of")(data, np.cumsum([0, *map(len, alike)], dtype=np.int64), keys)
    assert len(np.unique(keys)) == len(alike) and keys.all()


def test_long_pretokens_go_to_the_tokenizer(model: str) -> None:
    cache = compare(in_family(model, "gpt2"), ["a" * 1025, "b" * 1024, "c"])
    assert cache.whole == 3  # each round the first


def test_tokens_that_are_not_special_are_found(model: str) -> None:
    cache = compare(
        in_family(model, "qwen2"), ["a<tool_call>b", "<tool_call", "<tool_call>", "x" * 60 + "<|fim|>", "<|fim |>"]
    )
    assert cache.whole == 9


def test_composed_before_it_is_cut(model: str) -> None:
    compare(in_family(model, "qwen2"), ["e\u0301a", "\u0065\u0301", "a\u0323\u0307", "\u1112\u1161\u11ab", "\u212b"])
    compare(
        in_family(model, "qwen2"), ["-\u07f3\u07fd\u0819", "-\u07f3\u07fd", "\u07f3\u07fd"]
    )  # a mark of Unicode 11, in no order for tokenizers


PIECES = st.sampled_from([
    " ", " ", "  ", "\n", "\t", "\u00a0", "\u3000", "\x85", "\x1c", "'", "'s", "'S", "'re", "'ll", "'l", "'v", "'d", "''",
    "a", "é", "好", "1", "²", "Ⅷ", "_", "!", "🙂", "\u0301", "\u200b", "\U000e0001", "\u0378", "B", "Dž", "ʰ", "/", "\r", "\u017f", "<tool_call>", *SPECIAL,
])  # fmt: skip


@settings(deadline=None, max_examples=120)
@for_all(st.lists(st.lists(PIECES, max_size=30), min_size=1, max_size=3))
@example([[" ", "'s"], ["a", "  ", "\n", "b"], [" "], ["'", "r"]])
def test_pieces_of_every_kind(tokenizer: Tokenizer, pieces: list[list[str]]) -> None:
    compare(tokenizer, ["".join(p) for p in pieces])


@settings(deadline=None, max_examples=60)
@for_all(st.lists(st.text(max_size=100), min_size=1, max_size=3))
def test_any_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    compare(tokenizer, texts)


def test_every_code_point_this_python_knows(tokenizer: Tokenizer) -> None:
    kinds = pretokens_table()
    points = [chr(p) for p in range(0x110000) if kinds[p] != UNKNOWN and not 0xD800 <= p < 0xE000]
    texts = ["".join(f"a{c}1{c}!{c} {c}" for c in points[i : i + 500]) for i in range(0, len(points), 500)]
    # private use and the rarest planes are alike: some will do
    compare(tokenizer, [t for i, t in enumerate(texts) if i < 150 or i % 40 == 0], cache_of(tokenizer))


def test_a_full_table_starts_anew(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretokens, "MOST", 300)
    compare(tokenizer, REAL[:10])


def test_what_it_is_for() -> None:
    def reads(changes: dict[str, Any], of_model: dict[str, Any] | None = None) -> bool:
        parts = json.loads(train_bpe(iter([["a b"]]), 270).to_str()) | changes
        parts["model"] |= of_model or {}
        return ByteLevel.read(json.dumps(parts)) is not None

    def split(pattern: str, **changes: Any) -> dict[str, Any]:
        first = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False} | changes
        return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [first, byte_level(False)]}}

    assert reads({})
    assert not reads({"pre_tokenizer": byte_level(True) | {"add_prefix_space": True}})
    assert not reads({"pre_tokenizer": byte_level(False)})
    assert not reads({"normalizer": {"type": "NFKC"}})
    assert not reads({}, {"dropout": 0.1})
    assert not reads({}, {"end_of_word_suffix": "</w>"})
    assert reads(split(GPT_OSS)) and not reads(split(GPT_OSS + "|x")) and not reads(split(GPT2, invert=True))
