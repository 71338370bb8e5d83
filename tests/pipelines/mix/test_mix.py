from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from engine.errors import UserError
from engine.store.artifact import Artifact
from pipelines.mix.stage import Mix
from pipelines.mix.work import Rows, again, take

Build = Callable[..., Artifact]
Given = Callable[[str, list[dict[str, Any]]], Artifact]


@pytest.fixture
def sources(given: Given) -> dict[str, Artifact]:
    def rows(name: str, count: int, text: str) -> list[dict[str, Any]]:
        return [{"id": f"{name}{i}", "parents": [], "text": text} for i in range(count)]

    return {"web": given("Document", rows("web", 100, "abcd")), "facts": given("Document", rows("facts", 10, "é" * 8))}


def labels(artifact: Artifact) -> Counter[str]:
    table = artifact.to_table(["id", "parents"]).to_pylist()
    return Counter((row["parents"] or [row["id"]])[0].rstrip("0123456789") for row in table)


def test_without_weights_every_row_once_in_an_order_of_the_seeds(build: Build, sources: dict[str, Artifact]) -> None:
    one, same, other = (build("mix", {"documents": sources}, seed=seed) for seed in (1, 1, 2))
    ids = one.to_table(["id"])["id"].to_pylist()
    expected = [f"web{i}" for i in range(100)] + [f"facts{i}" for i in range(10)]
    assert sorted(ids) == sorted(expected) and ids != expected
    assert ids == same.to_table(["id"])["id"].to_pylist() != other.to_table(["id"])["id"].to_pylist()
    plain = build("mix", {"documents": sources}, shuffle=False)
    assert plain.to_table(["id"])["id"].to_pylist() == expected


def test_weights_give_exact_counts_and_repeats_have_ids_of_their_own(
    build: Build, sources: dict[str, Artifact]
) -> None:
    mixed = build("mix", {"documents": sources}, weights={"web": 3, "facts": 1}, epochs={"facts": 2.5})
    assert labels(mixed) == {"web": 75, "facts": 25}
    ids = mixed.to_table(["id"])["id"].to_pylist()
    assert len(set(ids)) == 100
    copies = Counter((r["parents"] or [r["id"]])[0] for r in mixed.to_table().to_pylist())
    assert sorted(count for identity, count in copies.items() if identity.startswith("facts")) == [2] * 5 + [3] * 5
    facts = mixed.manifest["summary"]["sources"]["facts"]
    assert facts == {"documents": 25, "distinct": 10, "available": 10, "share": 0.25, "epochs": 2.5}

    by_bytes = build("mix", {"documents": sources}, weights={"web": 1, "facts": 1}, unit="bytes")
    assert labels(by_bytes) == {"web": 40, "facts": 10}  # 160 bytes each
    hot = build("mix", {"documents": sources}, temperature=2.0)
    assert labels(hot) == {"facts": 10, "web": round(10 * 10**0.5)}


def test_a_mix_that_falls_short_says_so(build: Build, sources: dict[str, Artifact]) -> None:
    mixed = build("mix", {"documents": sources}, weights={"web": 1, "facts": 1}, size=100)
    assert labels(mixed) == {"web": 50, "facts": 10}
    assert mixed.manifest["summary"]["short"] == 40


def test_messages(build: Build, sources: dict[str, Artifact]) -> None:
    with pytest.raises(UserError, match="Did you mean `facts`"):
        build("mix", {"documents": sources}, weights={"web": 1, "fact": 1})
    with pytest.raises(UserError, match="leaves out facts"):
        build("mix", {"documents": sources}, weights={"web": 1})


def test_buckets_give_the_order_of_one_sort(
    build: Build, sources: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    import pipelines.mix.work as module
    from engine.execution.worker import carry_out
    from engine.store.store import Store

    whole = build("mix", {"documents": sources}).to_table(["id"])["id"].to_pylist()
    monkeypatch.setattr(module, "PART_ROWS", 7)
    monkeypatch.setattr(module._Spill, "HELD", 300)  # pyright: ignore[reportPrivateUsage]
    stage = Mix(seed=0)
    cut = carry_out(Store(str(tmp_path / "other")), "mix", stage, {"documents": sources})
    assert len(cut.parts()) > 10
    assert cut.to_table(["id"])["id"].to_pylist() == whole


@for_all(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.floats(0, 5))
def test_take_is_as_near_as_rows_allow(sizes: list[int], epochs: float) -> None:
    array = np.array(sizes, np.int64)
    wanted = epochs * array.sum()
    copies = take(np.random.default_rng(0).permutation(len(sizes)).astype(np.uint64), array, wanted)
    assert abs((copies * array).sum() - wanted) <= array.max() / 2 + 1e-6 * array.sum()
    assert copies.max() - copies.min() <= 1
    ones = np.ones(len(sizes), np.int64)
    assert abs(take(array.astype(np.uint64), ones, epochs * len(sizes)).sum() - epochs * len(sizes)) <= 0.5 + 1e-6


def test_caps_hold_and_a_curriculum_orders(build: Build, given: Given) -> None:
    sizes = [5, 1, 4, 1, 3]
    rows = [
        {"id": f"d{i}", "parents": [], "text": "x" * n, "metadata": f'{{"level": {i % 2}}}' if i else None}
        for i, n in enumerate(sizes)
    ]
    docs = {"web": given("Document", rows)}
    rising = build("mix", {"documents": docs}, curriculum="length").to_table(["text"])["text"].to_pylist()
    assert [len(text) for text in rising] == sorted(sizes)
    assert build("mix", {"documents": docs}, curriculum="-length", shuffle=False).to_table(["id"])["id"].to_pylist() == [
        "d0", "d2", "d4", "d1", "d3"
    ]  # fmt: skip
    by_level = build("mix", {"documents": docs}, curriculum="level", shuffle=False).to_table(["id"])["id"].to_pylist()
    assert by_level == ["d2", "d4", "d1", "d3", "d0"]  # without a level: last
    capped = build("mix", {"documents": docs}, caps={"web": 6}, epochs=3)
    assert capped.rows == 6 and capped.manifest["summary"]["sources"]["web"]["epochs"] == 6 / 5


@pytest.mark.parametrize("seed", range(20))
def test_copies_are_numbered_as_they_come(seed: int) -> None:
    """Against a count of all that came before, source after source, epoch after epoch. Ids and copies are drawn."""
    draw = np.random.default_rng(seed).integers
    sources = [[(int(draw(9)), int(draw(4))) for _ in range(draw(13))] for _ in range(draw(1, 4))]
    met: Counter[int] = Counter()
    expected: list[tuple[int, int, int, int]] = []
    for label, rows in enumerate(sources):
        for epoch in range(max((copies for _, copies in rows), default=0)):
            for row, (identity, copies) in enumerate(rows):
                if copies > epoch:
                    expected.append((label, epoch, row, met[identity]))
                    met[identity] += 1
    ids = {str(label): np.array([identity for identity, _ in rows], np.uint64) for label, rows in enumerate(sources)}
    measured = {label: Rows(of // np.uint64(2), of, np.ones(len(of), np.int64)) for label, of in ids.items()}
    copies = {str(label): np.array([n for _, n in rows], np.int64) for label, rows in enumerate(sources)}
    told = again(measured, copies)  # keys that are equal for other ids, too: the checks tell them apart
    assert [(a, b, c, told[str(a)].get((b, c), b)) for a, b, c, _ in expected] == expected
