"""Shards are views of the file; the order of blocks is a function of seed and position."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.errors import UserError
from tests.training.tiny import write_shard
from training.pretrain.token_blocks import Shards, order


@pytest.mark.parametrize("top", [1000, 100_000])
def test_blocks_are_numbered_through_files_and_batches(tmp_path: Path, top: int) -> None:
    tokens = np.random.default_rng(0).integers(0, top, (23, 8))
    tokens[0, 0] = top - 1
    write_shard(tmp_path / "a.arrow", tokens[:12])
    write_shard(tmp_path / "b.arrow", tokens[12:])
    shards = Shards(tmp_path)
    assert (len(shards), shards.block) == (23, 8)
    wanted = [22, 0, 11, 12, 4, 5, 4]
    assert np.array_equal(shards.tokens(wanted), tokens[wanted])
    assert len(set(shards.row_ids(range(23)))) == 23


def test_documents_are_numbered_within_a_block(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.arrow", np.zeros((2, 6), int), [[2, 5], [0]])
    assert Shards(tmp_path).documents([0, 1]).tolist() == [[0, 0, 1, 1, 1, 2], [1] * 6]


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no token block"):
        Shards(tmp_path)


def test_each_pass_is_a_permutation_and_depends_on_the_seed() -> None:
    passes = [order(7, epoch * 10, 10, 10) for epoch in range(3)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    assert order(8, 0, 10, 10) != passes[0]


def test_order_does_not_depend_on_how_it_is_cut() -> None:
    whole = order(3, 0, 57, 10)
    assert [block for at in range(0, 57, 4) for block in order(3, at, 4, 10)][:57] == whole
    assert sorted(whole[10:20]) == list(range(10))
