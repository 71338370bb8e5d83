from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.errors import UserError
from engine.execution.worker import carry_out
from engine.store.artifact import Artifact
from engine.store.schema import row_id
from engine.store.store import Store
from pipelines.tokenize import packing, work
from pipelines.tokenize.shards import Shards
from pipelines.tokenize.special_tokens import END, SPECIAL
from pipelines.tokenize.stage import Tokenize

Build = Callable[..., Artifact]
Given = Callable[[str, list[dict[str, Any]]], Artifact]
TEXTS = [f"Document {i}: the café's number is {i * i}, naïve 好的 🙂 " + "and so on " * (i % 7) for i in range(200)]
TEXTS[3] = f"{END} is text here, <|user|> too"


@pytest.fixture
def documents(given: Given) -> Artifact:
    return given("Document", [{"id": f"d{i}", "parents": [], "text": text} for i, text in enumerate(TEXTS)])


def stream(artifact: Artifact, split: str = "data") -> tuple[list[int], list[int], Shards]:
    """All tokens of a split and the offsets at which documents begin."""
    shards = Shards(artifact.path, split)
    tokens = [int(t) for row in shards for t in row]
    begins = [i * shards.block + s for i in range(len(shards)) for s in shards.starts(i)]
    return tokens, begins, shards


def test_blocks_decode_to_the_documents(build: Build, documents: Artifact) -> None:
    from transformers import AutoTokenizer

    made = build("tokenize", {"documents": documents}, vocab_size=400, block=64)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(made.path / "tokenizer"))
    assert [tokenizer.convert_tokens_to_ids(t) for t in SPECIAL] == [0, 1, 2, 3, 4]
    assert Shards(made.path).vocab_size == 400
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.chat_template) == (END, END, None)
    assert set(tokenizer("a b")) == {"input_ids", "attention_mask"}
    assert tokenizer.decode(tokenizer("naïve 好\n\n  x").input_ids) == "naïve 好\n\n  x"

    tokens, begins, shards = stream(made)
    summary = made.manifest["summary"]
    pieces = np.split(np.array(tokens[: len(tokens) - summary["waste"]]), begins[1:])
    assert [piece[-1] for piece in pieces] == [0] * len(TEXTS)
    assert all(0 not in piece[:-1] for piece in pieces)  # what looks like a special token in a text is text
    assert [tokenizer.decode(piece[:-1].tolist()) for piece in pieces] == TEXTS
    assert tokens[len(tokens) - summary["waste"] :] == [0] * summary["waste"]

    total = sum(map(len, pieces))
    nbytes = sum(len(t.encode()) for t in TEXTS)
    assert {k: summary[k] for k in ("tokens", "blocks", "documents", "bytes", "vocab_size", "waste")} == {
        "tokens": total, "blocks": len(shards), "documents": len(TEXTS), "bytes": nbytes, "vocab_size": 400,
        "waste": -total % 64,
    }  # fmt: skip
    assert summary["bytes_per_token"] == nbytes / total
    assert made.rows == len(shards) == -(-total // 64)
    # parents: the documents with tokens in the block
    owner = np.searchsorted(np.array(begins), np.arange(total), side="right") - 1
    for i in range(len(shards)):
        expected = sorted(set(owner[i * 64 : (i + 1) * 64].tolist()))
        assert shards.parents(i) == [f"d{d}" for d in expected]
    assert len({row["id"] for row in made.to_table(["id"]).to_pylist()}) == made.rows


def plain_best_fit(lengths: list[int], block: int) -> tuple[list[int], list[int]]:
    """(room left in each block, block of each piece): the longest piece first, each where it leaves the least room."""
    room: list[int] = []
    place = [0] * len(lengths)
    for piece in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = [(left, b) for b, left in enumerate(room) if left >= lengths[piece]]
        if not fits:
            fits = [(block, len(room))]
            room.append(block)
        place[piece] = min(fits)[1]
        room[place[piece]] -= lengths[piece]
    return room, place


def test_best_fit_cuts_only_documents_longer_than_a_block(build: Build, documents: Artifact) -> None:
    streamed = build("tokenize", {"documents": documents}, vocab_size=400, block=64)
    made = build("tokenize", {"documents": documents}, vocab_size=400, block=64, packing="best_fit")
    shards, summary = Shards(made.path), made.manifest["summary"]
    whole, begins, _ = stream(streamed)
    expected = np.split(np.array(whole[: sum(1 for _ in whole) - streamed.manifest["summary"]["waste"]]), begins[1:])
    pieces: dict[str, list[list[int]]] = {}
    for i, row in enumerate(shards):
        for start, end, name in zip(shards.starts(i), [*shards.starts(i)[1:], 64], shards.parents(i), strict=True):
            pieces.setdefault(name, []).append(row[start:end].tolist())
    for d, tokens in enumerate(expected):
        got = pieces[f"d{d}"]
        assert len(got) == -(-len(tokens) // 64)  # cut only where it must be
        together = [t for piece in sorted(got, key=len, reverse=True) for t in piece]
        assert together[: len(tokens)] == tokens.tolist() and set(together[len(tokens) :]) <= {0}
    sizes = [min(64, len(tokens) - at) for tokens in expected for at in range(0, len(tokens), 64)]
    assert len(shards) == len(plain_best_fit(sizes, 64)[0])
    assert summary["waste"] == 64 * len(shards) - summary["tokens"]


@pytest.mark.parametrize("seed", range(3))
def test_best_fit_is_the_plain_algorithm(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 33, 200)
    room, _ = plain_best_fit(lengths.tolist(), 32)
    block, offset, count = packing.best_fit(lengths, 32)
    assert count == len(room) and -(-lengths.sum() // 32) <= count
    used = np.zeros((count, 32), int)
    for b, o, size in zip(block, offset, lengths, strict=True):
        used[b, o : o + size] += 1
    assert used.max() == 1
    assert sorted(used.sum(1)) == sorted(32 - left for left in room)
    assert block[0] == 0 and (np.unique(block) == np.arange(count)).all()


def test_validation_holds_out_whole_documents(build: Build, documents: Artifact) -> None:
    made = build("tokenize", {"documents": documents}, vocab_size=300, block=32, validation=0.25)
    shards = Shards(made.path)
    assert shards.validation is not None
    train = {p for i in range(len(shards)) for p in shards.parents(i)}
    held = {p for i in range(len(shards.validation)) for p in shards.validation.parents(i)}
    assert train.isdisjoint(held) and len(train | held) == len(TEXTS)
    assert 0.15 < len(held) / len(TEXTS) < 0.35
    assert made.manifest["summary"]["validation"]["documents"] == len(held)
    assert made.rows == len(shards)  # validation blocks are not rows to train on
    with pytest.raises(UserError, match="held out"):
        build("tokenize", {"documents": documents}, vocab_size=300, validation=0.9999999)


def test_a_killed_run_ends_with_the_same_bytes(
    documents: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "PART_ROWS", 10)
    stage = Tokenize(vocab_size=300, block=16, validation=0.1)
    inputs = {"documents": {"d": documents}}
    one_file = carry_out(Store(str(tmp_path / "one")), "tokenize", stage, inputs)
    monkeypatch.setattr(packing, "SHARD_BYTES", 1000)
    whole = carry_out(Store(str(tmp_path / "whole")), "tokenize", stage, inputs)
    assert len(whole.files("data/")) > 5
    assert stream(whole)[:2] == stream(one_file)[:2]
    assert stream(whole, "validation")[:2] == stream(one_file, "validation")[:2]
    parents = [[s.parents(i) for i in range(len(s))] for s in (Shards(whole.path), Shards(one_file.path))]
    assert parents[0] == parents[1]

    for kill_at in (60, 130, 200):
        store = Store(str(tmp_path / f"cut{kill_at}"))

        def kill(event: dict[str, Any], at: int = kill_at) -> None:
            if event["event"] == "progress" and event["done"] >= at and "doing" not in event:
                raise KeyboardInterrupt

        monkeypatch.setattr("engine.stage.job.Job.progress", _unthinned)
        with pytest.raises(KeyboardInterrupt):
            carry_out(store, "tokenize", stage, inputs, emit=kill)
        assert carry_out(store, "tokenize", stage, inputs).digest == whole.digest


def _unthinned(self: Any, done: int, total: int | None = None, unit: str = "rows", **extra: Any) -> None:
    self.emit({"event": "progress", "done": done, "total": total, "unit": unit, **extra})


def test_training_does_not_depend_on_hash_seed_or_threads(tmp_path: Path) -> None:
    code = (
        "import sys, json; from pathlib import Path; from pipelines.tokenize.bpe import train_bpe\n"
        "texts = json.loads(Path(sys.argv[1]).read_text())\n"
        "sys.stdout.write(train_bpe(iter([texts[:50], texts[50:]]), 500).to_str())"
    )
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    made = [
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "texts.json")],
            env={**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed, threads in (("1", "1"), ("2", "2"))
    ]  # fmt: skip
    assert len(made[0]) > 1000 and made[0] == made[1]


def test_a_given_tokenizer(build: Build, documents: Artifact, tmp_path: Path) -> None:
    made = build("tokenize", {"documents": documents}, vocab_size=300, block=32)
    by_input = build("tokenize", {"documents": documents, "tokenizer": made}, block=32)
    assert stream(by_input)[0] == stream(made)[0]
    (tmp_path / "tok").symlink_to(made.path / "tokenizer")
    by_path = build("tokenize", {"documents": documents}, block=32, base=tmp_path, tokenizer="tok")
    assert stream(by_path)[0] == stream(made)[0]
    with pytest.raises(UserError, match="there is no tokenizer folder"):
        build("tokenize", {"documents": documents}, base=tmp_path, tokenizer="./nowhere")


def test_shards_give_views_over_several_files(
    build: Build, documents: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "SHARD_BYTES", 2000)
    monkeypatch.setattr(work, "PART_ROWS", 20)
    shards = Shards(build("tokenize", {"documents": documents}, vocab_size=300, block=16).path)
    assert len(shards.files) > 3
    tables = [pa.ipc.open_file(str(file)).read_all() for file in shards.files]
    whole = np.array([tokens for table in tables for tokens in table["tokens"].to_pylist()])
    assert np.array_equal(np.stack(list(shards)), whole) and len(shards) == len(whole)
    order = np.random.default_rng(0).permutation(len(shards))
    for rows in (order, range(len(whole)), range(3), range(len(whole) - 2, len(whole)), range(-2, 1), [-1]):
        tokens = shards.tokens_BT(rows)
        assert tokens.dtype == np.int64 and np.array_equal(tokens, whole[list(rows)])
    row = shards[len(shards) - 1]
    assert row.base is not None and not row.flags.writeable and np.array_equal(row, shards[-1])
    with pytest.raises(IndexError):
        shards[len(shards)]
    with pytest.raises(UserError, match="no token block"):
        Shards(shards.folder / "nowhere")


def test_the_ids_of_blocks_are_those_of_rows() -> None:
    tokens = np.arange(12, dtype=np.uint16).reshape(3, 4)
    names = ["d0", "ünï", "d2", ""]
    low, high = np.array([0, 1, 3]), np.array([2, 4, 3])
    plain = [row_id("TokenBlock", tokens[b].tobytes(), *names[low[b] : high[b]]) for b in range(3)]
    assert packing.block_ids(tokens, pa.array(names), low, high) == plain


def test_a_folder_of_ours_is_loaded_without_torch(build: Build, documents: Artifact, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    made = build("tokenize", {"documents": documents}, vocab_size=300, block=64)
    code = (
        "import sys; from pipelines.tokenize.tokenizer_files import load\n"
        "load(sys.argv[1]).save_pretrained(sys.argv[2]); print('torch' in sys.modules)"
    )
    source, ours = made.path / "tokenizer", tmp_path / "ours"
    told = subprocess.run(
        [sys.executable, "-c", code, str(source), str(ours)], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "False"
    loaded: Any = AutoTokenizer.from_pretrained(str(source))
    loaded.save_pretrained(str(tmp_path / "theirs"))
    for file in (tmp_path / "theirs").iterdir():
        assert (ours / file.name).read_bytes() == file.read_bytes()
