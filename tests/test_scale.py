"""The benchmark of cores and nodes: what it draws is what it says, and a part that fails or is cut leaves what it had, and words."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.parts import chained_duplicates
from benchmarks.parts.scale_on_paper import Corpus, Measured, World, shown, table
from benchmarks.parts.scaling.bench import Bar, Bench, Missing
from benchmarks.parts.scaling.components import CHAIN, canonical, edges
from benchmarks.parts.scaling.vectors import all_pairs, embeddings

ROOT = Path(__file__).parents[1]


def test_what_was_told_before_a_failure_stays(tmp_path: Path) -> None:
    bars = {"fast": Bar("toy", "<= 1", lambda value: value <= 1)}
    bench = Bench(tmp_path / "out.json", tmp_path, tmp_path, True, bars)
    with bench.attempt("first"):
        bench.claim("fast", 0.5)
        raise ValueError("the disk is on fire")
    with bench.attempt("second"):
        raise Missing("there is no Ray")
    told = json.loads((tmp_path / "out.json").read_text())
    assert [(claim["id"], claim["holds"]) for claim in told["claims"]] == [("fast", True)]
    assert told["problems"] == ["first: ValueError: the disk is on fire", "second: skipped, there is no Ray"]


def test_a_part_that_is_cut_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.scale", "--json", "--only", "components", "--minutes", "0.002"]
    done = subprocess.run([*command, "--data", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["problems"]["components"] == ["cut after 0.002 minutes"]
    (claim,) = said["claims"]
    assert claim["id"] == "components_equal_scipy" and claim["value"] is None and not claim["holds"]
    unknown = subprocess.run([*command[:4], "--only", "corse"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert unknown.returncode and "there is no part corse" in unknown.stderr


def test_edges_are_as_many_as_wanted_and_the_same_again() -> None:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count, drawn = edges(60_000)
    pairs = np.concatenate(list(drawn))
    assert pairs.shape == (60_000, 2) and pairs.max() < count
    assert np.array_equal(pairs, np.concatenate(list(edges(60_000)[1])))
    found = connected_components(coo_array((np.ones(60_000), pairs.T), (count, count)), directed=False)[1]
    sizes = np.bincount(found)
    assert (sizes == 1).any() and (sizes == 2).any() and sizes.max() > 100
    assert np.array_equal(canonical(found), canonical(sizes.size - 1 - found)), "labels are but names"
    assert count * 0.05 < CHAIN


def test_chained_documents_are_what_is_said_of_them() -> None:
    texts, truth = chained_duplicates.documents(2000, seed=3)
    times = Counter(texts)
    assert len(texts) == truth.documents >= 2000
    assert len(texts) - len(times) >= truth.exact > 400 and max(times.values()) == 2000 // 8
    assert truth.lone == 500 and truth.groups > 20
    assert texts == chained_duplicates.documents(2000, seed=3)[0]


def test_planted_vectors_lie_at_the_threshold() -> None:
    vectors = embeddings(2000)
    assert np.allclose((vectors**2).sum(1), 1, atol=1e-5)
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    one, two = np.nonzero(np.triu(cosines >= 0.95, 1))
    assert np.array_equal(all_pairs(vectors, 0.95), np.stack([one, two], 1)) and 150 < len(one) < 300
    assert 0.05 < np.median(cosines) < 0.4


def test_rates_of_two_corpora_are_taken_apart() -> None:
    def corpus(gigabytes: float, millions: float) -> Corpus:
        both = {name: 2 * gigabytes + 3 * millions for name in ("read", "filter", "dedup")}
        return Corpus(gigabytes, millions, {**both, "tokenize": 30 * gigabytes}, {**both, "tokenize": gigabytes})

    long, short = corpus(1, 0.1), corpus(0.3, 10)
    del short.cpu_s["tokenize"]
    measured = Measured(long, short, 1e6, "here")
    assert measured.cost("read", lambda c: c.cpu_s) == (pytest.approx(2), pytest.approx(3))
    assert measured.cost("tokenize", lambda c: c.cpu_s) == (pytest.approx(30), 0)
    world = World(1e10, 1e12, 1000, 0.04)
    by_name = {line.name: line for line in table(world, measured)}
    assert by_name["read"].core_hours == pytest.approx((2 * 4400 + 3 * 10_000) / 3600)
    assert by_name["tokenize"].written == 2e12
    assert "| read | 4.4 TB |" in shown(world, measured)
