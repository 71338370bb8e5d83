"""What is shown to be a BPE's without merging, against what `tokenizers` merges."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipelines.kernels.compiled import kernel
from pipelines.tokenize.byte_level import ByteLevel, alphabet
from pipelines.tokenize.derivations import NONE

derived = kernel("pipelines.kernels.bpe_proof", "derived")
Pairs = list[tuple[int, int]]


def tokenizer_of(pairs: Pairs, order: list[int] | None = None) -> Tokenizer:
    """Merges of pairs of tokens made before, of a, b, c and all other bytes; by rank as drawn, or in another order."""
    letters = alphabet()
    tokens = ["a", "b", "c", *(letter for letter in letters if letter not in "abc")]
    merges = list[tuple[str, str]]()
    for left, right in pairs:
        known = [*tokens[:3], *tokens[256:]]
        merges.append((known[left % len(known)], known[right % len(known)]))
        if "".join(merges[-1]) not in tokens:
            tokens.append("".join(merges[-1]))
    if order:
        merges = [merge for _, merge in sorted(zip(order, merges, strict=False), key=lambda one: one[0])]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return made


def parts_of(tokenizer: Tokenizer) -> ByteLevel:
    parts = ByteLevel.read(tokenizer.to_str())
    assert parts is not None
    return parts


def ids_of(tokenizer: Any, word: str) -> list[int]:
    return [token.id for token in tokenizer.model.tokenize(word)]


def shown(parts: ByteLevel, ids: list[int], steps: Any = None) -> bool:
    known = parts.derivations
    steps = known.steps if steps is None else steps
    return bool(derived(np.array(ids, np.uint32), len(ids), steps, known.merges, known.merge_shift))


def ways(word: str, tokens: dict[str, int]) -> list[list[int]]:
    """All sequences of tokens that spell a word."""
    if not word:
        return [[]]
    return [
        [tokens[word[:size]], *rest]
        for size in range(1, len(word) + 1)
        if word[:size] in tokens
        for rest in ways(word[size:], tokens)
    ]


PAIRS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=14)
WORD = st.text("abc", min_size=1, max_size=9)


@settings(deadline=None, max_examples=300)
@for_all(PAIRS, st.lists(WORD, min_size=1, max_size=6))
def test_one_way_to_spell_a_word_is_shown_and_it_is_the_tokenizers(pairs: Pairs, words: list[str]) -> None:
    """Of all ways, where each pair has its rank after those that make its tokens, as training has them."""
    once = list[tuple[int, int]]()
    for pair in pairs:  # a pair that is merged twice has its later rank, which may come after those that need it
        if pair not in once:
            once.append(pair)
    tokenizer = tokenizer_of(once)
    parts, tokens = parts_of(tokenizer), tokenizer.get_vocab()
    for word in words:
        right = ids_of(tokenizer, word)
        accepted = [ids for ids in ways(word, tokens) if shown(parts, ids)]
        assert accepted in ([right], [])
        if (parts.derivations.steps[right, 0] != NONE).all():
            assert accepted == [right]


@settings(deadline=None, max_examples=300)
@for_all(PAIRS, st.permutations(range(14)), st.lists(WORD, min_size=1, max_size=6))
def test_nothing_else_is_shown_whatever_the_order_of_merges(pairs: Pairs, order: list[int], words: list[str]) -> None:
    tokenizer = tokenizer_of(pairs, order)
    parts, tokens = parts_of(tokenizer), tokenizer.get_vocab()
    for word in words:
        right = ids_of(tokenizer, word)
        assert [ids for ids in ways(word, tokens) if shown(parts, ids)] in ([right], [])


def test_of_equal_merges_the_first_comes_first() -> None:
    tokenizer = tokenizer_of([(0, 0)])  # aa
    parts, aa = parts_of(tokenizer), tokenizer.get_vocab()["aa"]
    assert ids_of(tokenizer, "aaa") == [aa, 0]
    assert shown(parts, [aa, 0]) and shown(parts, [aa, aa, 0])
    assert not shown(parts, [0, aa]) and not shown(parts, [aa, 0, aa]) and not shown(parts, [0, 0])


def test_tokens_that_the_tokenizer_makes_otherwise_show_nothing() -> None:
    pairs = [(0, 1), (1, 2), (3, 2), (0, 4)]  # ab, bc, ab+c; a+bc is the same token, and never made so
    tokenizer = tokenizer_of(pairs)
    parts, vocab = parts_of(tokenizer), tokenizer.get_vocab()
    made = parts.derivations.made_by(tokenizer.model)
    assert np.array_equal(made, parts.derivations.steps) and (made[:, 0] != NONE).all()
    assert made[vocab["abc"]].tolist() == [3, vocab["ab"], 2]
    other = models.BPE(vocab, [("b", "c"), ("a", "b")])  # makes a and bc of abc
    wrong = parts.derivations.made_by(other)
    assert wrong[vocab["abc"], 0] == NONE and not shown(parts, [vocab["abc"]], wrong)
    assert (wrong[:200, 0] == 0).all()
