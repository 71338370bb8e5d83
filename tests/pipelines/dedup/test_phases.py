"""Dedup in many tasks: the bytes are those of one process, whoever did them, in whatever order, and wherever it was killed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from engine.execution.executors.processes import Processes
from engine.execution.worker import carry_out
from engine.stage.executor import Done, Executor, Here, Opened, Work
from engine.store.artifact import Artifact
from engine.store.store import Store
from pipelines.dedup import groups, near, neighbours, phases, repeats, semantic
from pipelines.dedup.components import components
from pipelines.dedup.stage import Dedup
from tests.pipelines.dedup.test_dedup import documents, greedy, removed

Given = Callable[[str, list[dict[str, Any]]], Artifact]
METHODS: dict[str, dict[str, Any]] = {
    "minhash": {"threshold": 0.7, "recall": 0.9999, "permutations": 512},
    "transitive": {"threshold": 0.7, "transitive": True, "prefer": ["s1/*"]},
    "exact": {"method": "exact", "keep": "first"},
    "substring": {"method": "substring", "passage": 12, "keep": "best", "quality": "worth"},
}


class Shuffled:
    """Three workers that share no memory, each given tasks in a drawn order."""

    width = 3

    def __init__(self, seed: int, kill_at: int | None = None) -> None:
        self.rng, self.left = random.Random(seed), kill_at
        self.phases: list[str] = []

    def map(self, work: Work, tasks: Iterable[Any], width: int | None = None) -> Iterator[Done]:
        self.phases.append(work.make.__name__)
        workers = [Opened(Work.loads(work.dumps())) for _ in range(self.width)]
        waiting = list(tasks)
        done: dict[int, Done] = {}
        for index in self.rng.sample(range(len(waiting)), len(waiting)):
            if self.left is not None and self.left <= 0:
                raise KeyboardInterrupt
            self.left = self.left if self.left is None else self.left - 1
            done[index] = self.rng.choice(workers).do(waiting[index])
        return iter([done[index] for index in range(len(waiting))])


def chained(seed: int = 0, count: int = 240) -> list[str]:
    """Texts in chains of neighbours that are alike, ends that are not, heavy copies, and lines that many share."""
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(4000)]
    texts: list[str] = []
    while len(texts) < count:
        base = rng.choices(words, k=rng.randint(40, 120))
        for shift in range(rng.randint(1, 9)):
            texts.append(" ".join(base[shift * 2 :] + rng.choices(words, k=shift * 2)))
        texts += [texts[-1].upper()] * rng.choice([0, 0, 1, 7])
    texts += ["of one kind only", "of one kind, only"] * 3
    rng.shuffle(texts)
    return texts


@pytest.fixture
def many(given: Given, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Artifact]]:
    """Documents in nine files, each a group of its own."""
    monkeypatch.setattr(groups, "GROUP_BYTES", 1)
    monkeypatch.setattr(repeats, "GROUP_BYTES", dict.fromkeys(repeats.GROUP_BYTES, 1))
    monkeypatch.setattr(phases, "BATCH_BYTES", 40_000)
    rows = documents(chained())
    for i, row in enumerate(rows):
        row |= {"source": f"s{i % 3}/x", "metadata": f'{{"worth": {i * 7919 % 13}}}'}
    size = -(-len(rows) // 9)
    files = [given("Document", rows[at : at + size]) for at in range(0, len(rows), size)]
    return {"documents": {f"d{i}": file for i, file in enumerate(files)}}


def run(folder: Path, inputs: Any, executor: Executor | None = None, **config: Any) -> Artifact:
    return carry_out(Store(str(folder)), "dedup", Dedup(**config), inputs, executor=executor)


@pytest.mark.parametrize("method", METHODS)
def test_the_bytes_are_those_of_one_process_in_whatever_order(
    many: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    config = METHODS[method]
    alone = run(tmp_path / "alone", many, Here(), **config)
    assert alone.rows and alone.rejected() is not None
    for seed in (1, 2):
        executor = Shuffled(seed)
        assert run(tmp_path / f"{seed}", many, executor, **config).digest == alone.digest
        assert len(executor.phases) >= 4
    monkeypatch.setattr(near, "MAPPED", 1000)
    assert run(tmp_path / "little", many, Shuffled(3), memory_gb=2e-4, **config).digest == alone.digest
    if method == "minhash":
        expected = greedy(chained(), 0.7, "longest")
        assert {i: k for i, (k, _) in removed(alone).items()} == {i: k for i, (k, _) in expected.items()}
        assert len(expected) > 100


def test_processes_make_the_bytes_of_one(many: Any, tmp_path: Path) -> None:
    config = METHODS["minhash"]
    alone = run(tmp_path / "alone", many, Here(), **config)
    spread = run(tmp_path / "spread", many, Processes(2), **config)
    assert spread.digest == alone.digest
    assert sum(one["tasks"] for one in spread.manifest["timings"]["workers"].values()) > 4 * 9


@pytest.mark.parametrize("method", ["minhash", "substring"])
def test_killed_in_any_phase_it_goes_on_and_ends_alike(many: Any, tmp_path: Path, method: str) -> None:
    config = METHODS[method]
    whole = Shuffled(0)
    digest = run(tmp_path / "whole", many, whole, **config).digest
    for kill_at in range(5, 60, 9):
        folder = tmp_path / f"{kill_at}"
        killed = Shuffled(kill_at, kill_at)
        try:
            run(folder, many, killed, **config)
        except KeyboardInterrupt:
            files = sorted(f for f in (folder / "work").rglob("*") if f.is_file() and "-" in f.parent.parent.name)
            if kill_at % 2:  # what was left is damaged
                harmed = files[kill_at % len(files)]
                data = bytearray(harmed.read_bytes())
                data[len(data) // 2] ^= 16
                harmed.write_bytes(data)
        assert run(folder, many, Shuffled(kill_at + 1), **config).digest == digest


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_components_are_scipys(kind: Any) -> None:
    rng = np.random.default_rng(0)
    count = 60_000
    edges = np.concatenate([
        rng.integers(0, count, (50_000, 2)),
        np.stack([np.arange(20_000), np.arange(1, 20_001)], 1)[rng.permutation(20_000)],  # a chain
        np.stack([np.full(30_000, 59_999), rng.integers(20_000, 60_000, 30_000)], 1),  # a star
    ]).astype(kind)  # fmt: skip
    labels = components(np.array_split(edges, 7), count)
    graph = coo_matrix((np.ones(len(edges)), edges.T), (count, count))
    number, theirs = connected_components(graph, directed=False)
    pairs = np.unique(np.stack([labels, theirs]), axis=1)
    assert pairs.shape[1] == number == len(np.unique(labels))
    assert (labels <= np.arange(count)).all() and (labels[labels] == labels).all()


def like_embeddings(count: int, width: int = 64) -> Any:
    """Vectors in clusters of unlike sizes, a fifth of them at a cosine of .90 to .99 to another, one of them a thousand times."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(100, width)) + rng.normal(size=width)
    vectors = centres[(rng.pareto(1.2, count) * 10).astype(int) % 100] + 0.9 * rng.normal(size=(count, width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    copies = rng.choice(count, count // 5, replace=False)
    base, beside = vectors[rng.integers(0, count, len(copies))], rng.normal(size=(len(copies), width))
    beside -= (beside * base).sum(1, keepdims=True) * base
    beside /= np.linalg.norm(beside, axis=1, keepdims=True)
    cosine = rng.uniform(0.90, 0.99, len(copies))[:, None]
    vectors[copies] = cosine * base + np.sqrt(1 - cosine**2) * beside
    vectors[rng.choice(count, 1000, replace=False)] = vectors[0]
    return vectors.astype(np.float32)


def test_neighbours_by_homes_are_those_of_all_pairs() -> None:
    vectors = like_embeddings(4000)
    every, _ = neighbours.near_all(vectors, np.arange(len(vectors)), 0.95, 1 << 28)
    lists = neighbours.lists_for(len(vectors))
    centres = neighbours.directions(vectors[neighbours.sample_rows(len(vectors), 8 * lists)], lists, 0.95)
    homes = neighbours.Homes(vectors, neighbours.nearest(vectors, centres))
    by, like = homes.near(0.95)
    gone = by >= 0
    assert (every >= 0).sum() > 1000 and abs(gone.sum() - (every >= 0).sum()) <= 0.01 * (every >= 0).sum()
    assert (
        np.allclose(like[gone], (vectors[gone].astype(float) * vectors[by[gone]]).sum(1)) and (by[by[gone]] < 0).all()
    )
    met, pairs = homes.recall(0.95, 4000)
    cosines = vectors @ vectors.T
    assert pairs == ((cosines >= 0.95).sum() - len(vectors)) and met >= 0.99 * pairs


def test_many_embeddings_make_the_bytes_of_one_process(
    many: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import BertConfig, BertModel

    from tests.training.tiny import tokenizer

    made = tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model: Any = BertModel(BertConfig(vocab_size=len(made), **sizes))
    model.save_pretrained(tmp_path / "model")
    made.save_pretrained(tmp_path / "model")
    config = {"method": "semantic", "model": str(tmp_path / "model"), "threshold": 0.999}
    few = run(tmp_path / "few", many, Here(), **config)
    monkeypatch.setattr(semantic, "SLICE", 64)
    monkeypatch.setattr(neighbours, "ALL_PAIRS", 100)
    alone = run(tmp_path / "alone", many, Here(), **config)
    assert run(tmp_path / "spread", many, Shuffled(1), **config).digest == alone.digest
    assert alone.manifest["summary"]["recall"] >= 0.99 and alone.rows == few.rows < 250
