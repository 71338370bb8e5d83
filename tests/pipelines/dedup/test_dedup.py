from __future__ import annotations

import contextlib
import random
import unicodedata
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash
from hypothesis import HealthCheck, example, settings
from hypothesis import given as for_all
from hypothesis import strategies as st

from engine.errors import UserError
from engine.execution.worker import carry_out
from engine.store.artifact import Artifact
from engine.store.store import Store
from engine.text.words import words
from pipelines.dedup import near as near_
from pipelines.dedup import phases as dedup
from pipelines.dedup import saved_index, writing
from pipelines.dedup.minhash import Banding, choose_banding, permutations, sign_texts
from pipelines.dedup.neighbours import near
from pipelines.dedup.repeats import Cutter
from pipelines.dedup.stage import Dedup
from pipelines.kernels.word_hashes import hash_words, make_room
from pipelines.texts import documents as documents_
from pipelines.texts.columns import texts_of
from pipelines.texts.forms import word_forms
from pipelines.texts.shingles import jaccard, shingles, sorted_sets

Build = Callable[..., Artifact]
Given = Callable[[str, list[dict[str, Any]]], Artifact]

# Characters of every kind that the definition tells apart, what folds into several, marks in and out of order, ignorable ones.
ALPHABET = st.sampled_from(
    "aBz09_ \n.-'\u0080\u00a0é“”…\u3000好いかガｶﾞー가힣ᄀ\ue000，\uffff🙂ẞﬁ½㍿ﷺ\u00ad\u200b\ufeff\u0301\u0323\u0345\u3099กำเ\u0e48ខ្ម႐İ\U0001d7d8\U0010ffff"
)


def planted(seed: int = 0) -> list[str]:
    """Texts of random words, and copies of them with some words replaced."""
    rng = random.Random(seed)
    vocabulary = [f"w{i}é" for i in range(5000)]
    texts: list[str] = []
    for _ in range(60):
        base = rng.choices(vocabulary, k=rng.randint(60, 200))
        texts.append(" ".join(base))
        for _ in range(rng.randint(0, 5)):
            copy = list(base)
            for _ in range(rng.randint(0, 6)):
                copy[rng.randrange(len(copy))] = rng.choice(vocabulary)
            texts.append(" ".join(copy))
    rng.shuffle(texts)
    return texts


def greedy(texts: list[str], threshold: float, keep: str) -> dict[int, tuple[int, float]]:
    """What `dedup` should do, by comparing all pairs of plain Python sets; a copy of words goes where its original does."""
    sets = [shingles(text, 5) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i].encode()), i) if keep == "longest" else i)
    kept: list[int] = []
    gone: dict[int, tuple[int, float]] = {}
    original: dict[tuple[str, ...], int] = {}
    for i in order:
        if (first := original.setdefault(tuple(words(texts[i])), i)) != i:
            gone[i] = gone.get(first, (first, 1.0))
            continue
        like = [(len(sets[i] & sets[k]) / max(len(sets[i] | sets[k]), 1), -place, k) for place, k in enumerate(kept)]
        if like and max(like)[0] >= threshold:
            gone[i] = (max(like)[2], max(like)[0])
        else:
            kept.append(i)
    return gone


def documents(texts: list[str]) -> list[dict[str, Any]]:
    return [{"id": f"d{i}", "parents": [], "text": text} for i, text in enumerate(texts)]


def removed(artifact: Artifact) -> dict[int, tuple[int, float]]:
    table = artifact.rejected()
    rows = table.to_pylist() if table else []
    return {int(r["id"][1:]): (int(r["kept_id"][1:]), r["jaccard"]) for r in rows}


@for_all(
    st.lists(st.text(ALPHABET | st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=5), st.integers(1, 4)
)
@settings(deadline=None)
@example(["é", "か" + " " * 64 + "\u3099x", "好\n\u0301 \t\u0323", "a\u0323" + "\u0301\u0323" * 20], 1)
@example(["", " ", "a好b", "好", "é“é", "\u0080", *(f"{'a' * k}é“bc 好d" for k in range(250, 258))], 2)
def test_the_kernels_find_the_words_and_shingles_of_the_definition(texts: list[str], n: int) -> None:
    source = texts_of(pa.chunked_array([pa.array(["cut off", *texts]).slice(1)]))
    forms = word_forms(source, origin=True)
    column = forms.texts
    seen: dict[int, str] = {}
    for i, text in enumerate(texts):
        start, end = column.offsets[i], column.offsets[i + 1]
        out, room = np.empty(end - start + 1, np.uint64), make_room(end - start)
        count = hash_words(column.data, start, end, room, out)
        expected = words(text)
        assert count == len(expected)
        for value, word in zip(out[:count].tolist(), expected, strict=True):
            assert seen.setdefault(value, word) == word  # equal hashes, equal words
        assert len(set(out[:count].tolist())) == len(set(expected))
        places = forms.spans(start + np.stack([room[1][:count], room[2][:count]], 1))
        for (begin, stop), word in zip(places.tolist(), expected, strict=True):
            assert word in words(source.data[begin:stop].tobytes().decode())
    values, ends = sorted_sets(source, np.arange(len(texts)), n)
    sets = [set(values[s:e].tolist()) for s, e in zip([0, *ends[:-1]], ends, strict=True)]
    expected_sets = [shingles(text, n) for text in texts]
    for i in range(len(texts)):
        for j in range(len(texts)):
            assert len(sets[i] & sets[j]) == len(expected_sets[i] & expected_sets[j])


def test_signatures_are_datasketchs() -> None:
    texts = [*planted()[:20], "two words only", "one two three four five six", ""]
    banding = Banding(3, 7)
    a, b = permutations(21)
    column = texts_of(pa.array(texts))
    signed = sign_texts(column, 5, banding, a, b)
    for i, text in enumerate(texts):
        values, _ = sorted_sets(column, np.array([i]), 5)
        assert signed.counts[i] == max(len(words(text)) - 4, min(len(words(text)), 1))
        if signed.counts[i] < 2:
            continue
        theirs = MinHash(21, hashfunc=int)
        theirs.update_batch((values >> np.uint64(32)).tolist())
        assert np.array_equal(signed.signatures[i], theirs.hashvalues)
        assert np.array_equal(np.stack([a, b]), theirs.permutations)


def test_banding_is_the_formula() -> None:
    assert Banding(14, 8).chance(0.8) == pytest.approx(1 - (1 - 0.8**8) ** 14)
    for threshold, recall in ((0.8, 0.98), (0.8, 0.99), (0.7, 0.99), (0.5, 0.9)):
        chosen = choose_banding(threshold, recall, 128)
        assert chosen.recall(threshold) >= recall and chosen.permutations <= 128
        steeper = [Banding(b, chosen.rows + 1) for b in range(1, 128 // (chosen.rows + 1) + 1)]
        assert all(s.recall(threshold) < recall for s in steeper)
        assert Banding(chosen.bands - 1, chosen.rows).recall(threshold) < recall


@pytest.mark.parametrize("keep", ["longest", "first"])
def test_removals_are_those_of_all_pairs_of_python_sets(build: Build, given: Given, keep: str) -> None:
    texts = planted()
    expected = greedy(texts, 0.8, keep)
    assert len(expected) > 50
    artifact = build(
        "dedup", {"documents": given("Document", documents(texts))}, keep=keep, recall=0.9999, permutations=512
    )
    got = removed(artifact)
    assert {i: k for i, (k, _) in got.items()} == {i: k for i, (k, _) in expected.items()}
    for i, (k, similarity) in got.items():
        assert similarity == pytest.approx(expected[i][1]) == pytest.approx(jaccard(texts[i], texts[k], 5))
    assert sorted(artifact.to_table(["id"])["id"].to_pylist()) == sorted(
        f"d{i}" for i in range(len(texts)) if i not in expected
    )


def test_no_chain_of_likenesses_removes_what_is_unlike_the_kept(build: Build, given: Given) -> None:
    w = [f"x{i}" for i in range(400)]
    texts = [" ".join(w[shift : shift + 300]) for shift in (0, 25, 50, 75)]  # neighbours .84 alike, next .71
    got = removed(build("dedup", {"documents": given("Document", documents(texts))}, keep="first", recall=0.9999,
                        permutations=512))  # fmt: skip
    assert {i: k for i, (k, _) in got.items()} == {1: 0, 3: 2}


def test_short_and_empty_texts_are_compared_whole(build: Build, given: Given) -> None:
    texts = ["Yes!", "yes", "yes no", "", "", "!?", "!?", "?!", "a b c d e", "A, b c d e", "a b c d f"]
    got = removed(build("dedup", {"documents": given("Document", documents(texts))}, keep="first"))
    assert got == {1: (0, 1.0), 4: (3, 1.0), 6: (5, 1.0), 9: (8, 1.0)}
    exact = removed(build("dedup", {"documents": given("Document", documents(texts))}, method="exact"))
    assert exact == {4: (3, 1.0), 6: (5, 1.0)}


@pytest.mark.parametrize("method", ["exact", "minhash"])
def test_copies_are_copies_however_they_are_written(build: Build, given: Given, method: str) -> None:
    base = "Le café était fermé à midi, déjà, et le garçon rêvait près du théâtre où l'été s'achève sans bruit."
    spellings = [
        base, unicodedata.normalize("NFD", base), base.replace(" ", "\u200b "), base + "\r\n", "\ufeff" + base, base.upper(),
        base.replace(" ", "\u00a0"), base.replace("e", "e\u00ad"), base.replace(" ", "\n  "),
    ]  # fmt: skip
    others = ["cat", "dog", "猫", "犬", "🙂", "🙃", "!!!", "???", "👨‍👩‍👧", "👨‍👩‍👦", "a b c", "a b d", "\u0301"]
    texts = [*spellings, *others, *others, "我们在图书馆读书，\n然后回家。", "我们在图书馆\n读书，然后\u3000回家。"]
    got = removed(build("dedup", {"documents": given("Document", documents(texts))}, method=method, keep="first"))
    n, m = len(spellings), len(others)
    assert {i: kept for i, (kept, _) in got.items()} == {
        **{i: 0 for i in range(1, n)}, **{n + m + i: n + i for i in range(m)}, n + 2 * m + 1: n + 2 * m,
    }  # fmt: skip


@pytest.mark.parametrize(("level", "between"), [("line", "\n"), ("paragraph", "\n\n")])
def test_lines_are_compared_and_counted_as_all_text_is(build: Build, given: Given, level: str, between: str) -> None:
    line = "L'été s'achève ici."
    pieces = ["我们在图书馆读了书。", unicodedata.normalize("NFD", line), "数据 ｶﾞｽ", "short one"]
    texts = [
        between.join(["我們", "我们在图书馆读了书。", line, "数据ガス", "short one"]),
        between.join([*pieces, "own"]),
    ]
    made = build("dedup", {"documents": given("Document", documents(texts))}, method="exact", level=level)
    assert made.to_table(["text"])["text"].to_pylist() == [texts[0], f"short one{between}own"]  # two words are too few


def test_passages_are_cut_at_the_bytes_of_the_text(build: Build, given: Given) -> None:
    """The form of a text has other bytes than it: what is cut out and what stays is the text's."""
    passage = "Le café ﬁn était fermé ½ heure à midi 我们在图书馆读了书 ㍿"
    texts = [passage, f"« Été » : {unicodedata.normalize('NFD', passage).upper()}! Ça va, ｶﾞ"]
    made = build("dedup", {"documents": given("Document", documents(texts))}, method="substring", passage=20)
    assert made.to_table(["text"])["text"].to_pylist() == [passage, "« Été » : ! Ça va, ｶﾞ"]


def test_the_result_depends_on_neither_order_nor_batches(
    build: Build, given: Given, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    texts = planted(1)
    rows = documents(texts)
    lengths = {len(t) for t in texts}
    rows = [row for row in rows if len(row["text"]) in lengths and not lengths.discard(len(row["text"]))]  # no ties
    whole = removed(build("dedup", {"documents": given("Document", rows)}))
    random.Random(5).shuffle(rows)
    assert whole and removed(build("dedup", {"documents": given("Document", rows)})) == whole
    monkeypatch.setattr(documents_, "BATCH_ROWS", 13)
    monkeypatch.setattr(writing, "PART_ROWS", 13)
    split = [given("Document", rows[:50]), given("Document", rows[50:])]
    assert removed(build("dedup", {"documents": split})) == whole

    def killed(event: dict[str, Any]) -> None:
        if event["event"] == "commit" and event["part"].startswith("00003"):
            raise KeyboardInterrupt

    inputs = {"documents": {"a": split[0], "b": split[1]}}
    whole_run = carry_out(Store(str(tmp_path / "one")), "dedup", Dedup(), inputs)
    with pytest.raises(KeyboardInterrupt):
        carry_out(Store(str(tmp_path / "two")), "dedup", Dedup(), inputs, emit=killed)
    assert carry_out(Store(str(tmp_path / "two")), "dedup", Dedup(), inputs).digest == whole_run.digest


def test_many_copies_cost_no_square(build: Build, given: Given) -> None:
    texts = ["the same words again and again in every one of these documents here"] * 20_000
    texts += [f"{texts[0]} number {i % 7}" for i in range(5_000)]
    artifact = build("dedup", {"documents": given("Document", documents(texts))}, threshold=0.7)
    assert artifact.rows == 1
    assert artifact.manifest["summary"]["pairs_met"] <= 16


def test_a_small_memory_limit_changes_nothing(build: Build, given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    resolve = near_.Resolving.__call__
    monkeypatch.setattr(near_.Resolving, "__call__", lambda self, index: batches.append(index) or resolve(self, index))
    inputs = {"documents": given("Document", documents(planted(2)))}
    whole = build("dedup", inputs)
    assert batches == [0]
    monkeypatch.setattr(near_, "MAPPED", 1000)
    cut = build(LittleMemory, inputs, memory_gb=3e-5)
    assert max(batches) > 3 and removed(cut) == removed(whole) != {}
    assert cut.digest == whole.digest


def test_texts_are_read_once_where_they_fit_and_that_changes_nothing(
    given: Given, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = documents(planted(2))
    split = {"a": given("Document", rows[:100]), "b": given("Document", rows[100:])}
    sizes = {  # the texts, and for each batch of 13 one offset more than it has texts
        label: sum(len(row["text"].encode()) for row in artifact.to_table().to_pylist())
        + 4 * (artifact.rows + -(-artifact.rows // 13))
        for label, artifact in split.items()
    }
    monkeypatch.setattr(documents_, "BATCH_ROWS", 13)
    monkeypatch.setattr(writing, "PART_ROWS", 13)
    texts_read: dict[str, int] = {}
    opened = Artifact.parquet

    @contextlib.contextmanager
    def counted(artifact: Artifact, name: str) -> Generator[Any]:
        with opened(artifact, name) as file:
            original = file.iter_batches

            def iter_batches(*args: Any, columns: list[str], **options: Any) -> Any:
                texts_read[artifact.id] = texts_read.get(artifact.id, 0) + ("text" in columns)
                return original(*args, columns=columns, **options)

            file.iter_batches = iter_batches
            yield file

    monkeypatch.setattr(Artifact, "parquet", counted)
    digests = set[str]()
    for bytes_, times in (sum(sizes.values()), [1, 1]), (sizes["a"], [1, 3]), (sizes["a"] - 1, [3, 3]), (0, [3, 3]):
        texts_read.clear()
        monkeypatch.setattr(dedup, "TEXTS", bytes_ / 1e9)
        digests.add(carry_out(Store(str(tmp_path / f"{bytes_}")), "dedup", Dedup(), {"documents": split}).digest)
        assert [texts_read[artifact.id] for artifact in split.values()] == times
    assert len(digests) == 1


class LittleMemory(Dedup):
    """The limit is no part of the identity, so the same work needs another name to be done again."""

    version = 999


def test_transitive_removes_all_of_a_chain_and_tells_how_like_the_kept_they_are(build: Build, given: Given) -> None:
    w = [f"x{i}" for i in range(400)]
    texts = [" ".join(w[shift : shift + 300]) for shift in (0, 25, 50, 75)] + ["of another kind altogether " * 3]
    artifact = build("dedup", {"documents": given("Document", documents(texts))}, keep="first", recall=0.9999,
                     permutations=512, transitive=True)  # fmt: skip
    got = removed(artifact)
    assert {i: k for i, (k, _) in got.items()} == {1: 0, 2: 0, 3: 0}
    assert all(similarity == pytest.approx(jaccard(texts[i], texts[0], 5)) for i, (_, similarity) in got.items())


def test_the_kept_one_is_the_trusted_or_the_best(build: Build, given: Given) -> None:
    text = "the same words stand in every one of these five documents " * 3
    rows = documents([f"{text} {'x' * i}" for i in range(5)])
    for row, source, score in zip(
        rows, ("web/a", "wiki/a", "wiki/b", "books/a", "web/b"), (9, 1, 3, 8, None), strict=True
    ):
        row |= {"source": source, "metadata": None if score is None else f'{{"score": {score}}}'}
    artifact = given("Document", rows)

    def kept(**config: Any) -> list[str]:
        return build("dedup", {"documents": artifact}, threshold=0.5, **config).to_table(["id"])["id"].to_pylist()

    assert kept() == ["d4"] and kept(keep="first") == ["d0"]
    assert kept(keep="best", quality="score") == ["d0"]
    assert kept(prefer=["wiki/*", "books/*"]) == ["d2"]
    assert kept(prefer=["wiki/*", "books/*"], keep="first") == ["d1"]
    assert kept(prefer=["books/*"], keep="best", quality="score") == ["d3"]


def test_every_removal_shows_a_passage_of_both(build: Build, given: Given) -> None:
    texts = planted(3)
    table = build("dedup", {"documents": given("Document", documents(texts))}).rejected()
    assert table is not None and len(table) > 30
    for row in table.to_pylist():
        passage = words(row["evidence"])
        assert row["evidence"] in row["text"] and len(passage) >= 5
        kept = words(texts[int(row["kept_id"][1:])])
        assert any(kept[i : i + 5] == passage[:5] for i in range(len(kept) - 4))


def test_new_documents_against_an_index_are_as_if_all_had_come_together(
    build: Build, given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = planted(4)
    rows = documents(texts)
    old, new = rows[:100], rows[100:]
    options = {"keep": "first", "recall": 0.9999, "permutations": 512}
    together = removed(build("dedup", {"documents": given("Document", rows)}, **options))
    first = build("dedup", {"documents": given("Document", old)}, save_index=True, **options)
    second = build("dedup", {"documents": given("Document", new), "index": first}, save_index=True, **options)
    assert removed(first) | removed(second) == together
    assert any(k < 100 for k, _ in removed(second).values())
    with pytest.raises(UserError, match="no index"):
        build("dedup", {"documents": given("Document", new), "index": given("Document", old)}, **options)
    with monkeypatch.context() as later:
        later.setattr(saved_index, "VERSION", saved_index.VERSION + 1)
        with pytest.raises(UserError, match=r"earlier Flywheel.*run that `dedup` anew"):
            build("dedup", {"documents": given("Document", new), "index": first}, recall=0.99, keep="first")
    with pytest.raises(UserError, match="other settings"):
        build("dedup", {"documents": given("Document", new), "index": first}, keep="first", ngram=4)


@pytest.mark.parametrize("level", ["line", "paragraph"])
@for_all(
    st.lists(
        st.lists(st.sampled_from(["a b c", " a  b c ", "x y z w", "", "short", "p q\tr"]), max_size=8),
        min_size=1,
        max_size=4,
    )
)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_and_paragraphs_are_cut_as_in_plain_python(level: str, texts: list[list[str]]) -> None:
    cutter = Cutter(level, 0, 3)
    for lines in texts:
        text = "\n".join(lines)
        ((keys, spans, long),) = cutter.pieces(texts_of(pa.array([text])))
        blocks: list[list[str]] = [[]]
        for line in lines:
            if level == "line" or not line.strip():
                blocks.append([])
            if line.strip():
                blocks[-1].append(" ".join(line.split()))
        expected = [" ".join(block) for block in blocks if block]
        assert [" ".join(text[a:b].split()) for a, b, _, _ in spans.tolist()] == expected
        assert long.tolist() == [i for i, piece in enumerate(expected) if len(piece.split()) >= 3]
        names: dict[tuple[int, ...], str] = {}
        assert all(names.setdefault(tuple(k), e) == e for k, e in zip(keys.tolist(), expected, strict=True))
        assert len(names) == len(set(expected))


def test_lines_that_stand_before_are_cut_out(build: Build, given: Given) -> None:
    texts = ["one two three\nfour five six\n\nend", "of its own here\n one  two three\nend", "four five six\n\n"]
    artifact = build("dedup", {"documents": given("Document", documents(texts))}, method="exact", level="line")
    assert artifact.to_table(["text"])["text"].to_pylist() == [texts[0], "of its own here\nend"]
    table = artifact.rejected()
    assert table is not None
    rows = [(r["text"], r["kept_id"], r["reason"]) for r in table.to_pylist()]
    assert rows == [
        (" one  two three", "d0", "duplicate_line"),
        ("four five six", "d0", "duplicate_line"),
        (texts[2], None, "nothing_left"),
    ]
    best = build(
        "dedup", {"documents": given("Document", documents(texts))}, method="exact", level="line", prefer=["none"]
    )
    assert best.to_table(["text"]) == artifact.to_table(["text"])


@pytest.mark.parametrize("memory_gb", [1.0, 1e-6])
def test_passages_that_stand_before_are_cut_out(build: Build, given: Given, memory_gb: float) -> None:
    rng = random.Random(memory_gb)
    texts: list[str] = []
    for _ in range(30):
        text = [f"w{rng.randrange(10**6)}" for _ in range(rng.randint(20, 60))]
        if texts:
            other = rng.choice(texts).split()
            at, size = rng.randrange(len(other)), rng.randint(3, 30)
            text[10:10] = other[at : at + size]
        texts.append(" ".join(text))
    n = 10
    seen: set[tuple[str, ...]] = set()
    expected: list[str] = []
    for text in texts:
        found = text.split()
        gone = [False] * len(found)
        for i in range(len(found) - n + 1):
            window = tuple(found[i : i + n])
            if window in seen:
                gone[i : i + n] = [True] * n
            seen.add(window)
        expected.append(" ".join(word for word, g in zip(found, gone, strict=True) if not g))
    artifact = build("dedup", {"documents": given("Document", documents(texts))}, method="substring", passage=n,
                     memory_gb=memory_gb)  # fmt: skip
    made = [" ".join(text.split()) for text in artifact.to_table(["text"])["text"].to_pylist()]
    assert made == [text for text in expected if text] and made != texts


def test_near_by_cosine_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 8))
    vectors = (centres[rng.integers(0, 40, 300)] + 0.2 * rng.normal(size=(300, 8))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = rng.permutation(300)
    kept: list[int] = []
    expected = np.full(300, -1)
    for i in order:
        like = vectors[kept] @ vectors[i] if kept else np.zeros(0)
        if len(like) and like.max() >= 0.95:
            expected[i] = kept[int(like.argmax())]
        else:
            kept.append(int(i))
    got, similarity = near(vectors, order, 0.95, 40_000)
    assert (got == expected).all() and (got >= 0).sum() > 50
    gone = got >= 0
    assert np.allclose(similarity[gone], (vectors[gone] * vectors[got[gone]]).sum(1), atol=1e-5)


def test_texts_are_embedded_by_a_given_model(build: Build, given: Given, tmp_path: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel

    from tests.training.tiny import tokenizer

    made = tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(made), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model: Any = BertModel(config).eval()
    model.save_pretrained(tmp_path / "model")
    made.save_pretrained(tmp_path / "model")
    texts = ["The capital of France", "of Peru", "The capital of France", "", "The capital of Japan is Tokyo " * 40]
    docs = given("Document", documents(texts))
    artifact = build("dedup", {"documents": docs}, method="semantic", threshold=0.9999, model="model", base=tmp_path)
    table = artifact.rejected()
    assert table is not None
    assert [(r["id"], r["kept_id"], round(r["cosine"], 5)) for r in table.to_pylist()] == [("d2", "d0", 1.0)]

    def alone(text: str) -> Any:
        with torch.inference_mode():
            states = model(input_ids=torch.tensor([made(text or " ").input_ids])).last_hidden_state[0]
        return torch.nn.functional.normalize(states.mean(0), dim=0).numpy()

    expected = alone(texts[1]) @ alone(texts[0])
    below = build("dedup", {"documents": docs}, method="semantic", threshold=float(expected) - 1e-4, keep="first",
                  model="model", base=tmp_path).rejected()  # fmt: skip
    assert below is not None
    row = next(r for r in below.to_pylist() if r["id"] == "d1")
    assert row["kept_id"] == "d0" and row["cosine"] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UserError, match="needs a model"):
        build("dedup", {"documents": docs}, method="semantic")
