"""Texts to the ids of a byte-level BPE (see `pipelines.tokenize.pretokens`): each pretoken is looked up, and merged where it is new."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipelines.kernels.pretoken_ends import DIGITS, begin_gpt2, mark, next_begin, pretoken_end
from pipelines.kernels.pretoken_table import ZERO, find, place, prefetch, pretoken_key
from pipelines.kernels.word_hashes import U64

EMPTY = 4
LONGEST = 1024  # bytes of a pretoken that is merged here: merging takes the square of them
INLINE, ID_BITS = 3, 20  # so many ids of so many bits stand in the table itself, above their number
NEVER = U64(0xFFFFFFFFFFFFFFFF)
ID = U64((1 << ID_BITS) - 1)
# What a call tells in `tally`, and goes on from.
TEXT, PLACE, COUNT, BEGUN, KNOWN, ARENA, NEW, PLAIN = range(8)
AHEAD = 128  # pretokens that are cut before the first of them is looked up, so that memory can be fetched meanwhile


@numba.njit(cache=True, nogil=True, inline="always")
def _merge_of(merges: Any, shift: int, left: Any, right: Any) -> Any:
    """Rank and id of what two ids become, the rank in the high half; `NEVER` if nothing."""
    slot = find(merges, shift, ((U64(left) + U64(1)) << U64(32)) | U64(right))
    return merges[slot + 1] if merges[slot] != ZERO else NEVER


@numba.njit(cache=True, nogil=True)
def merge(data: Any, i: int, stop: int, byte_ids: Any, merges: Any, shift: int, ids: Any, ranks: Any) -> int:
    """The ids of a pretoken: of all pairs the one of the lowest rank becomes one, the first of equals, until none can; how many are left."""
    count = stop - i
    for k in range(count):
        ids[k] = byte_ids[data[i + k]]
    for k in range(count - 1):
        ranks[k] = _merge_of(merges, shift, ids[k], ids[k + 1])
    while count > 1:
        best, at = NEVER, -1
        for k in range(count - 1):
            if ranks[k] < best:
                best, at = ranks[k], k
        if at < 0:
            break
        ids[at] = np.uint32(best & U64(0xFFFFFFFF))
        count -= 1
        for k in range(at + 1, count):
            ids[k] = ids[k + 1]
            ranks[k - 1] = ranks[k]
        if at > 0:
            ranks[at - 1] = _merge_of(merges, shift, ids[at - 1], ids[at])
        if at < count - 1:
            ranks[at] = _merge_of(merges, shift, ids[at], ids[at + 1])
    return count


@numba.njit(cache=True, nogil=True)
def encode(
    data: Any, offsets: Any, family: int, kinds: Any, masks: Any, begins: Any, table: Any, shift: int, arena: Any, byte_ids: Any, merges: Any,
    merge_shift: int, vocabulary: Any, vocabulary_shift: int, last: int, ids: Any, ranks: Any, stops: Any, keys: Any, out: Any, ends: Any,
    news: Any, tally: Any,
) -> int:  # fmt: skip
    """Write the ids of texts one after the other to `out`, going on where `tally` says.

    Stops before a new pretoken for which there is no room. New ones are to be looked at before the next call.

    Args:
        data: the texts, and 64 bytes more; text t is `data[offsets[t]:offsets[t + 1]]`.
        table: pretoken -> its ids, or where they are in `arena` (their number before them).
        byte_ids: the id of each byte. merges: see `_merge_of`.
        vocabulary: pretoken -> 1 + the id of what is a token as it is, whatever its merges; empty (`EMPTY` places) if merges decide.
        last: an id that ends each text, or -1.
        masks, begins: room for a batch (`pipelines.kernels.pretoken_ends`). ids, ranks: for `LONGEST`; stops, keys: for `AHEAD`.
        ends: where the ids of each text end in `out`, out; -1 less that for a text that the tokenizer itself must encode.
        news: (n, 3) int64, where each new pretoken begins and ends in `data`, and where in the table it is, out.
        tally: (8,) int64, in and out: the text, the place in it, ids in `out`, those of the texts before, pretokens in the table, ids in the
            arena, new pretokens, whether `begins` is of use.

    Returns:
        1 if all texts are done.
    """
    text, i, count, begun = tally[TEXT], tally[PLACE], tally[COUNT], tally[BEGUN]
    known, used, new = tally[KNOWN], tally[ARENA], tally[NEW]
    most = 3 * (len(table) >> 3)
    if text == 0 and i == 0:
        tally[PLAIN] = family <= DIGITS and mark(data, offsets[len(offsets) - 1], kinds, masks)
        if family > DIGITS:
            mark(data, offsets[len(offsets) - 1], kinds, masks)
        elif tally[PLAIN]:
            begin_gpt2(data, offsets[len(offsets) - 1], family, masks, begins)
    plain = tally[PLAIN]
    done = 1
    while text < len(offsets) - 1:
        end = offsets[text + 1]
        whole = True
        while i < end and whole and done:
            cut = 0
            stop = i
            while stop < end and cut < AHEAD:
                begin = stop
                stop = (
                    next_begin(data, begin, end, begins)
                    if plain
                    else pretoken_end(family, data, begin, end, kinds, masks)
                )
                if stop < 0:
                    whole = False
                    break
                key = pretoken_key(data, begin, stop)
                prefetch(table, place(table, shift, key))
                stops[cut], keys[cut] = stop, key
                cut += 1
            if not whole:
                break
            for each in range(cut):
                stop, key = stops[each], keys[each]
                slot = find(table, shift, key)
                if table[slot] == ZERO:
                    size = stop - i
                    if size > LONGEST:
                        whole = False
                        break
                    if known >= most or new == len(news) or used + size >= len(arena):
                        done = 0
                        break
                    length = 0
                    if len(vocabulary) > EMPTY:
                        spot = find(vocabulary, vocabulary_shift, key)
                        if vocabulary[spot] != ZERO:
                            ids[0] = np.uint32(vocabulary[spot + 1] - U64(1))
                            length = 1
                    if length == 0:
                        length = merge(data, i, stop, byte_ids, merges, merge_shift, ids, ranks)
                    value = U64(length)
                    if length > INLINE:
                        value = U64(used) << U64(2)
                        arena[used] = length
                        for k in range(length):
                            arena[used + 1 + k] = ids[k]
                        used += length + 1
                    else:
                        for k in range(length):
                            value |= U64(ids[k]) << U64(2 + k * ID_BITS)
                    table[slot], table[slot + 1] = key, value
                    known += 1
                    news[new, 0], news[new, 1], news[new, 2] = i, stop, slot
                    new += 1
                value = table[slot + 1]
                length = np.int64(value & U64(3))
                if length:  # all that there may be are written, and those counted that there are
                    value >>= U64(2)
                    out[count] = np.uint32(value & ID)
                    out[count + 1] = np.uint32((value >> U64(ID_BITS)) & ID)
                    out[count + 2] = np.uint32((value >> U64(2 * ID_BITS)) & ID)
                    count += length
                else:
                    at = np.int64(value >> U64(2))
                    for k in range(arena[at]):
                        out[count] = arena[at + 1 + k]
                        count += 1
                i = stop
        if done == 0:
            break
        if whole:
            if last >= 0:
                out[count] = np.uint32(last)
                count += 1
            ends[text] = count
        else:
            count = begun
            ends[text] = -1 - count
        begun = count
        i = end
        text += 1
    tally[TEXT], tally[PLACE], tally[COUNT], tally[BEGUN] = text, i, count, begun
    tally[KNOWN], tally[ARENA], tally[NEW] = known, used, new
    return done


@numba.njit(cache=True, nogil=True)
def ids_at(slot: int, table: Any, arena: Any, ids: Any) -> Any:
    """Write the ids of the pretoken at a place of the table; how many there are."""
    value = table[slot + 1]
    length = np.int64(value & U64(3))
    if length:
        for k in range(length):
            ids[k] = np.uint32((value >> U64(2 + k * ID_BITS)) & ID)
        return length
    at = np.int64(value >> U64(2))
    length = np.int64(arena[at])
    for k in range(length):
        ids[k] = arena[at + 1 + k]
    return length
