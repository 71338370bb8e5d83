"""How a byte-level BPE makes each of its tokens: what it takes to show that ids are right without merging anything.

BPE merges the pair of neighbours of the lowest rank, the first of equals, until none can be merged. Let each token be what BPE makes of its own
bytes, by merges of growing rank. Then ids are what BPE makes of theirs if and only if it makes of any two neighbours those two: until a merge
crosses a boundary, both sides are merged as they are alone, and the first that crosses lies between two neighbours. Whether one does is seen by
undoing merges at the boundary, the last one first (van Antwerpen and Neubeck 2024, "So many tokens, so little time"): nothing is searched or tried.

So a pretoken costs some ten look-ups, a tenth of what it takes to have another library merge it. What each token's bytes make is asked of that library, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.kernels.compiled import kernel
from pipelines.texts.columns import Array

_derive = kernel("pipelines.kernels.bpe_proof", "derive")

NONE = 0xFFFFFFFF  # as the kernels have it: the step of a token that merges don't make
AT_ONCE = 16  # tokens


@dataclass(frozen=True)
class Derivations:
    """
    Attributes:
        tokens: by id, spelled as the tokenizer does (V).
        spelling, bounds: token t has the bytes `spelling[bounds[t]:bounds[t + 1]]`.
        steps: (V, 3) uint32, the merge that makes each token last (`pipelines.kernels.bpe_proof`).
        merges, merge_shift: ranks of pairs, as a table.
        between: a byte that is in no merge, if there is one: what stands on both sides of it is encoded as it is alone.
    """

    tokens: list[str]
    spelling: Array
    bounds: Array
    steps: Array
    merges: Array
    merge_shift: int
    between: int | None

    @staticmethod
    def of(
        tokens: list[str], spelling: Array, bounds: Array, pairs: Array, byte_ids: Array, merges: Array, shift: int
    ) -> Derivations:
        """
        Args:
            pairs: (M, 3) uint32, two ids and what they become, by rank.
        """
        steps = np.zeros((len(tokens), 3), np.uint32)
        _derive(pairs, merges, shift, byte_ids, steps)
        alone = np.setdiff1d(byte_ids, pairs)
        return Derivations(tokens, spelling, bounds, steps, merges, shift, int(alone[-1]) if len(alone) else None)

    def made_by(self, model: Any) -> Array:
        """The steps, without the tokens that a tokenizer's model makes in another way; it is given some at once, which is half the work."""
        steps = self.steps.copy()
        letter, some = ("", 1) if self.between is None else (self.tokens[self.between], AT_ONCE)
        made = np.flatnonzero(steps[:, 0] != NONE)
        for i in range(0, len(made), some):
            ids = made[i : i + some].tolist()
            encoded = [token.id for token in model.tokenize(letter.join([self.tokens[one] for one in ids]))]
            if encoded[::2] != ids or encoded[1::2] != [self.between] * (len(ids) - 1):
                steps[ids, 0] = NONE
        return steps
