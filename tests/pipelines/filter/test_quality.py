from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from engine.errors import UserError
from engine.store.artifact import Artifact
from engine.text.words import words
from pipelines.filter.quality import BUCKETS, auc_interval, train

Build = Callable[..., Artifact]
Given = Callable[[str, list[dict[str, Any]]], Artifact]
COMMON = [f"word{i}" for i in range(200)]


def texts(seed: int, count: int, marks: list[str], share: float) -> list[str]:
    """Texts of common words, of which this share holds a few of the marks."""
    draw = random.Random(seed)
    made: list[str] = []
    for _ in range(count):
        own = draw.choices(COMMON, k=draw.randint(20, 60))
        if draw.random() < share:
            own += draw.choices(marks, k=3)
        draw.shuffle(own)
        made.append(" ".join(own))
    return made


def test_scores_are_scikit_learns_on_counted_words_and_pairs() -> None:
    """The kernels and buckets against a dictionary of words and pairs, and the same regression on it."""
    from scipy.sparse import lil_matrix
    from sklearn.linear_model import LogisticRegression

    good, bad = texts(1, 250, ["Brilliant", "süß"], 0.9), texts(2, 250, ["spam", "好"], 0.9)
    made = train([pa.array(good)], [pa.array(bad)])
    everything = [*good, *bad]

    def features(text: str) -> Counter[Any]:
        found = words(text)
        return Counter([*found, *pairwise(found)])

    index = {f: i for i, f in enumerate(sorted({f for t in everything for f in features(t)}, key=str))}
    x = lil_matrix((len(everything), len(index)))
    for row, text in enumerate(everything):
        counted = features(text)
        for feature, count in counted.items():
            x[row, index[feature]] = count / np.sqrt(counted.total())
    import xxhash

    learnt = np.array([xxhash.xxh3_64_intdigest(t.encode()) % 5 != 0 for t in everything])
    y = np.array([1] * 250 + [0] * 250)
    x = x.tocsr()
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000, tol=1e-6).fit(x[learnt], y[learnt])
    expected = model.predict_proba(x)[:, 1]
    got = made.score(pa.array(["", *everything]).slice(1))
    # A few of the 17,000 pairs share a bucket.
    assert np.abs(got - expected).max() < 0.02
    assert np.corrcoef(got, expected)[0, 1] > 0.9999
    assert made.facts["held_out"] == {"good": int((~learnt[:250]).sum()), "bad": int((~learnt[250:]).sum())}
    from scipy.stats import mannwhitneyu

    one, other = expected[:250][~learnt[:250]], expected[250:][~learnt[250:]]
    assert made.facts["held_out_auc"] == pytest.approx(
        mannwhitneyu(one, other).statistic / len(one) / len(other), abs=0.01
    )
    assert {"brilliant", "süss"} <= set(made.facts["telling_good"]) and {"spam", "好"} <= set(made.facts["telling_bad"])
    again = train([pa.array(good[:100]), pa.array(good[100:])], [pa.array(bad)])
    assert again.as_parquet() == made.as_parquet()


def test_noise_cannot_be_told_apart_and_the_interval_says_so() -> None:
    facts = train([pa.array(texts(3, 300, [], 0))], [pa.array(texts(4, 300, [], 0))]).facts
    assert facts["held_out_auc_low"] < 0.5 < facts["held_out_auc_high"]


def test_the_intervals_closed_form_and_coverage() -> None:
    auc, low, high = auc_interval(np.arange(30) + 100.0, np.arange(40) + 0.0)
    assert (auc, high) == (1.0, pytest.approx(1.0)) and 0.9 < low < 1
    # Its bounds solve |auc - theta| = 1.96 se(theta).
    for theta in (low,):
        spread = 70 / 2 - 1
        se = np.sqrt(
            theta * (1 - theta) * (1 + spread * (1 - theta) / (2 - theta) + spread * theta / (1 + theta)) / 1200
        )
        assert abs(auc - theta) == pytest.approx(1.959964 * se, rel=1e-6)
    mirrored = auc_interval(np.arange(40) + 0.0, np.arange(30) + 100.0)
    assert mirrored == (0.0, pytest.approx(0.0), pytest.approx(1 - low))
    assert auc_interval(np.ones(5), np.ones(5))[0] == 0.5
    rng = np.random.default_rng(0)
    from scipy.stats import norm

    true = norm.cdf(1 / np.sqrt(2))
    drawn = [auc_interval(rng.normal(1, 1, 40), rng.normal(0, 1, 60)) for _ in range(600)]
    covered = np.mean([low <= true <= high for _, low, high in drawn])
    assert 0.93 < covered < 0.98


def test_a_filter_learns_from_examples_and_keeps_what_is_like_the_good(build: Build, given: Given) -> None:
    def rows(name: str, made: list[str]) -> Artifact:
        return given("Document", [{"id": f"{name}{i}", "parents": [], "text": t} for i, t in enumerate(made)])

    good, bad = rows("g", texts(5, 300, ["fine"], 1.0)), rows("b", texts(6, 300, ["junk"], 1.0))
    mixed = texts(7, 50, ["fine"], 1.0) + texts(8, 50, ["junk"], 1.0)
    inputs = {"documents": rows("d", mixed), "good": good, "bad": bad}
    kept = build("filter", inputs, min_quality=0.5)
    assert kept.to_table()["text"].to_pylist() == mixed[:50]
    gone = kept.rejected()
    assert gone is not None and set(gone["reason"].to_pylist()) == {"quality"}
    assert all(float(d) < 0.5 for d in gone["detail"].to_pylist()) and gone["text"].to_pylist() == mixed[50:]
    assert min(kept.to_table()["quality"].to_pylist()) >= 0.5
    facts = kept.manifest["summary"]["classifier"]
    assert facts["held_out_auc"] > 0.99 and facts["held_out_auc_low"] > 0.9
    stored = pl.read_parquet(io.BytesIO(kept.store.read("artifacts", kept.id, "classifier.parquet")))
    assert stored["bucket"].max() == BUCKETS and stored["bucket"].is_sorted()
    scored = build("filter", inputs, keep={"mine": "quality > 0.9 AND words > 3"})
    assert scored.manifest["rejected"].keys() == {"mine"}
    assert {c["name"] for c in kept.manifest["inputs"]["good"]} == {"good0"}
    with pytest.raises(UserError, match="needs the inputs `good` and `bad`"):
        build("filter", {"documents": good}, min_quality=0.5)
    with pytest.raises(UserError, match="`bad` is missing"):
        build("filter", {"documents": good, "good": good})
    with pytest.raises(UserError, match="at least 10 texts"):
        build("filter", {"documents": good, "good": good, "bad": rows("few", texts(9, 30, ["junk"], 1.0))})
