"""Merges against Hugging Face's trainer, and counts that don't depend on how texts are cut."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipelines.texts.columns import strings, texts_of
from pipelines.tokenize import bpe, counts
from pipelines.tokenize.bpe import train_bpe
from pipelines.tokenize.counts import PretokenCounts, count_texts
from pipelines.tokenize.special_tokens import SPECIAL

REAL = [f.read_text(encoding="utf-8") for f in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:12]]
ODD = ["naïve café 好的好的 don't we'll  \n\n x", "aaaa aaa aaaaaaa baaab", "\u0378 unknown\u0378", "\u00a0\u3000 x  "]


def trained_by_tokenizers(texts: list[str], size: int) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator(iter([texts]), trainer)
    return made


@pytest.mark.parametrize("size", [261, 300, 2000])
def test_the_tokenizer_that_its_trainer_makes(size: int) -> None:
    texts = [*REAL, *ODD]
    assert train_bpe(iter([texts[:5], texts[5:]]), size).to_str() == trained_by_tokenizers(texts, size).to_str()


@settings(deadline=None, max_examples=100)
@for_all(st.lists(st.text(st.sampled_from("aab c"), max_size=40), min_size=1, max_size=4))
def test_few_letters(texts: list[str]) -> None:
    """Ties, overlaps, and no pair left long before there are so many tokens."""
    assert train_bpe(iter([texts]), 400).to_str() == trained_by_tokenizers(texts, 400).to_str()


def test_counted_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*REAL[:4], *ODD]
    whole = count_texts(texts)
    monkeypatch.setattr(counts, "BATCH", 1000)
    parts = PretokenCounts()
    for one in reversed(texts):
        apart = PretokenCounts()
        apart.add_texts(texts_of(strings([one])))
        parts.add(apart.words())
    added = parts.words()
    assert added.data.tobytes() == whole.data.tobytes()
    assert np.array_equal(added.ends, whole.ends) and np.array_equal(added.counts, whole.counts)
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert whole.counts.sum() == sum(len(cut.pre_tokenize_str(text)) for text in texts)


def test_room_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "PAIRS_ROOM", 4)
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abc"), rng.integers(1, 15))) for _ in range(500)]
    assert train_bpe(iter([words]), 600).to_str() == trained_by_tokenizers(words, 600).to_str()
