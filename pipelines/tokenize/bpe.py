"""Training a byte-level BPE."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipelines.kernels.compiled import kernel
from pipelines.texts.columns import Array, strings, texts_of
from pipelines.tokenize.byte_level import alphabet
from pipelines.tokenize.counts import PretokenCounts, Words
from pipelines.tokenize.special_tokens import SPECIAL

_start = kernel("pipelines.kernels.bpe_training", "start")
_learn = kernel("pipelines.kernels.bpe_training", "learn")
_name_bytes = kernel("pipelines.kernels.bpe_training", "name_bytes")
_rehash = kernel("pipelines.kernels.pretoken_table", "rehash")

STARTED, PAIRS, PLACES, HEAP, TOKENS, MERGES = range(6)  # as the kernel has them
DONE, PAIRS_FULL, PLACES_FULL, HEAP_FULL = range(4)
PAIRS_ROOM = 18  # bits; pairs of bytes are 65,536 at most


def train_bpe(texts: Iterator[list[str]], vocab_size: int) -> Tokenizer:
    """A byte-level BPE (Sennrich et al. 2016, over GPT-2's pre-tokens). The same texts give the same merges."""
    counts = PretokenCounts()
    for some in texts:
        counts.add_texts(texts_of(strings(some)))
    return train_words(counts.words(), vocab_size)


def train_words(words: Words, vocab_size: int) -> Tokenizer:
    """The BPE that Hugging Face's trainer makes of these pretokens: the pair that is most frequent becomes a token, of equals the one
    of the lowest ids. First come the special tokens, then bytes in the order of the characters that stand for them.
    """
    letters = alphabet()
    tokens = [*SPECIAL, *sorted(letters)]
    ids = {token: index for index, token in enumerate(tokens)}
    byte_ids = np.array([ids[letter] for letter in letters], np.int32)
    merges = list[tuple[str, str]]()
    for left, right, made in _merges(words, byte_ids, len(tokens), vocab_size).tolist():
        if made == len(tokens):
            tokens.append(tokens[left] + tokens[right])
        assert tokens[made] == tokens[left] + tokens[right]
        merges.append((tokens[left], tokens[right]))
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _merges(words: Words, byte_ids: Array, known: int, size: int) -> Array:
    """(M, 3) int64: two tokens, and what they become, until there are `size` tokens."""
    count = len(words.data)
    symbols, links = np.empty(count, np.int32), np.empty((count, 3), np.int32)
    pairs, bits = 1 << PAIRS_ROOM, PAIRS_ROOM + 1
    table, keys, counts = np.zeros(2 << bits, np.uint64), np.empty(pairs, np.uint64), np.empty(pairs, np.int64)
    ends, seen = np.empty((pairs, 3), np.int64), np.zeros(pairs, np.int64)
    places, heap = np.empty((count + 16, 2), np.int32), np.empty((pairs, 2), np.int64)
    hashes, powers = np.zeros(size, np.uint64), np.zeros(size, np.uint64)
    token_bits = int(2 * size).bit_length()
    known_tokens = np.zeros(2 << token_bits, np.uint64)
    _name_bytes(byte_ids, hashes, powers, known_tokens, 64 - token_bits)
    merges = np.empty((2 * size, 3), np.int64)
    tally = np.zeros(6, np.int64)
    tally[TOKENS] = known
    _start(
        words.data, words.bounds, words.counts, byte_ids, symbols, links, table, 64 - bits, keys, counts, ends, places, heap, tally
    )  # fmt: skip
    while True:
        full = _learn(
            words.counts, size, symbols, links, table, 64 - bits, keys, counts, ends, seen, places, heap, hashes, powers, known_tokens,
            64 - token_bits, merges, tally,
        )  # fmt: skip
        if full == DONE:
            return merges[: tally[MERGES]]
        if full == PAIRS_FULL:
            larger = np.zeros(2 * len(table), np.uint64)
            bits += 1
            _rehash(table, larger, 64 - bits)
            table = larger
            keys, counts, ends, seen = (_twice(one) for one in (keys, counts, ends, seen))
        elif full == PLACES_FULL:
            places = _twice(places)
        else:
            heap = _twice(heap)


def _twice(array: Array) -> Array:
    """With as much room again."""
    return np.concatenate([array, np.zeros_like(array)])
