"""Ids by the cache against the ids of Hugging Face tokenizers, one by one."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, settings
from hypothesis import given as for_all
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from pipelines.kernels.characters import UNKNOWN, pretokens_table
from pipelines.texts.columns import texts_of
from pipelines.tokenize import pretokens
from pipelines.tokenize.bpe import train_bpe
from pipelines.tokenize.pretokens import PretokenCache, fits
from pipelines.tokenize.special_tokens import SPECIAL

FILES = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:40]
REAL = [file.read_text(encoding="utf-8") for file in FILES]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    def texts() -> Iterator[list[str]]:
        yield [*REAL[:20], "naïve café 好的 don't we'll  \n\n x"]

    made = train_bpe(texts(), 1500)
    made.encode_special_tokens = True
    return made


def compare(tokenizer: Tokenizer, texts: list[str], cache: PretokenCache | None = None) -> None:
    def encode(batch: list[str]) -> list[list[int]]:
        return [e.ids for e in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]

    cache = cache or PretokenCache(encode)
    for _ in range(2):  # once learning, once knowing
        got = cache.encode(texts_of(pa.chunked_array([pa.array(["x", *texts]).slice(1)])))
        for text, ids, expected in zip(texts, got, encode(texts), strict=True):
            assert ids.tolist() == expected, text[:200]


def test_real_text(tokenizer: Tokenizer) -> None:
    compare(tokenizer, [*REAL, ""])


def test_contractions_are_no_single_characters(tokenizer: Tokenizer) -> None:
    endings = ("s", "t", "m", "d", "re", "ve", "ll")
    alike = "".join(f"{chr(k * 0x10000 + ord(e[0]))} " for e in endings for k in (1, 2))
    compare(tokenizer, [" ".join(f"'{e}" for e in endings) + "\n'" + "\n'".join(endings) + alike, alike])


PIECES = st.sampled_from([
    " ", " ", "  ", "\n", "\t", "\u00a0", "\u3000", "\x85", "\x1c", "'", "'s", "'S", "'re", "'ll", "'l", "'v", "'d", "''",
    "a", "é", "好", "1", "²", "Ⅷ", "_", "!", "🙂", "\u0301", "\u200b", "\U000e0001", "\u0378", *SPECIAL,
])  # fmt: skip


@settings(deadline=None, max_examples=400)
@for_all(st.lists(st.lists(PIECES, max_size=30), min_size=1, max_size=3))
@example([[" ", "'s"], ["a", "  ", "\n", "b"], [" "], ["'", "r"]])
def test_pieces_of_every_kind(tokenizer: Tokenizer, pieces: list[list[str]]) -> None:
    compare(tokenizer, ["".join(p) for p in pieces])


@settings(deadline=None, max_examples=200)
@for_all(st.lists(st.text(max_size=100), min_size=1, max_size=3))
def test_any_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    compare(tokenizer, texts)


def test_every_code_point_this_python_knows(tokenizer: Tokenizer) -> None:
    table = pretokens_table()
    points = [chr(p) for p in range(0x110000) if table[p] != UNKNOWN and not 0xD800 <= p < 0xE000]
    texts = ["".join(f"a{c}1{c}!{c} {c}" for c in points[i : i + 500]) for i in range(0, len(points), 500)]
    # private use and the rarest planes are alike: some will do
    compare(tokenizer, [t for i, t in enumerate(texts) if i < 150 or i % 40 == 0])


def test_a_full_table_starts_anew(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretokens, "MOST", 300)
    compare(tokenizer, REAL[:10])


def test_what_it_is_for() -> None:
    def tokenizer(**changes: Any) -> str:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=changes.get("prefix", False))  # type: ignore[assignment]
        if "normalizer" in changes:
            made.normalizer = changes["normalizer"]
        if "added" in changes:
            made.add_tokens(changes["added"])
        return made.to_str()

    assert fits(tokenizer())
    assert not fits(tokenizer(prefix=True))
    assert not fits(tokenizer(normalizer=normalizers.NFC()))
    assert not fits(tokenizer(added=["word"]))
