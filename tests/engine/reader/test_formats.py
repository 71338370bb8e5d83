"""The same rows in every format and encoding become the same rows of ours; a bad one costs itself, and is told by its line."""

from __future__ import annotations

import bz2
import csv
import datetime
import gzip
import io
import json
import lzma
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import UserError
from engine.plan.inputs import resolve
from engine.store.artifact import Artifact
from engine.store.store import Store

ROWS = [{"prompt": f"Frage {i}: größer, 好, 👍?", "reference": f"00{i}"} for i in range(5)]


def truth(artifact: Artifact) -> list[dict[str, Any]]:
    return [
        {"prompt": row["prompt"][0]["content"], "reference": row["reference"]}
        for row in artifact.to_table().to_pylist()
    ]


def rejected(artifact: Artifact) -> list[dict[str, Any]]:
    found = artifact.rejected()
    return found.to_pylist() if found else []


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def comma(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


CODECS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv"])
def test_rows_in_any_encoding(bring: Any, tmp_path: Path, form: str, codec: str) -> None:
    text = {
        "jsonl": jsonl(ROWS), "json": json.dumps(ROWS, ensure_ascii=False, indent=1), "csv": comma(ROWS), "tsv": comma(ROWS, "\t"),
    }[form]  # fmt: skip
    (tmp_path / f"a.{form}").write_bytes(text.encode(codec))
    made = bring(f"a.{form}", "Prompt")
    assert truth(made) == ROWS and not rejected(made)


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-32"])
def test_texts_lose_their_mark_and_nothing_else(bring: Any, tmp_path: Path, codec: str) -> None:
    (tmp_path / "a.txt").write_bytes("größer, 好".encode(codec))
    assert bring("a.txt", "Document").to_table()["text"].to_pylist() == ["größer, 好"]


def test_rows_compressed_and_called_otherwise(bring: Any, tmp_path: Path) -> None:
    data = jsonl(ROWS).encode()
    zst = pa.Codec("zstd").compress(data, asbytes=True)
    for name, packed in {
        "a.jsonl.gz": gzip.compress(data), "b.jsonl.bz2": bz2.compress(data), "c.jsonl.xz": lzma.compress(data), "d.jsonl.zst": zst,
        "E.JSONL": data, "f.ndjson": data, "g.json": data, "h.jsonl": gzip.compress(data), "i.jsonl.gz": gzip.compress(data[:50]) + gzip.compress(data[50:]),
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(packed)
        assert truth(bring(name, "Prompt")) == ROWS, name
    (tmp_path / "s.csv").write_text(comma(ROWS, ";"))
    assert truth(bring("s.csv", "Prompt")) == ROWS
    (tmp_path / "excel.csv").write_text("sep=;\n" + comma([*ROWS, {"prompt": "bad", "reference": "a\0"}], ";"))
    excel = bring("excel.csv", "Prompt")
    assert truth(excel) == ROWS and rejected(excel)[0]["detail"].startswith("excel.csv:8: `reference`: a NUL")
    (tmp_path / "array.jsonl").write_text(json.dumps(ROWS, indent=1))
    assert truth(bring("array.jsonl", "Prompt")) == ROWS
    (tmp_path / "w.json").write_text(json.dumps({"data": ROWS}))
    assert truth(bring("w.json", "Prompt")) == ROWS
    many = jsonl([{"prompt": f"Frage {i} {os.urandom(30).hex()}"} for i in range(5000)]).encode()
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(many)[:-9])
    cut = bring("cut.jsonl.gz", "Prompt")
    assert cut.rows > 4000 and [r["reason"] for r in rejected(cut)] == ["unreadable"]


def test_parquet_of_every_make(bring: Any, tmp_path: Path) -> None:
    """Dictionary, large, decimal, timestamp and nested columns; what is a text in the end is spelled."""
    day = datetime.datetime(2024, 5, 6, 7, 8, 9)
    columns = {
        "prompt": pa.array(["a", "b", "a"]).dictionary_encode(),
        "reference": pa.array([Decimal("1.50"), None, Decimal("-2.00")], pa.decimal128(10, 2)),
        "when": pa.array([day] * 3, pa.timestamp("us")),
        "more": pa.array([{"x": [1, 2], "y": None}] * 3),
        "tags": pa.array([["p"], [], None], pa.large_list(pa.large_string())),
        "raw": pa.array([b"\xff\x00"] * 3, pa.large_binary()),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    made = bring("a.parquet", "Prompt")
    assert truth(made) == [
        {"prompt": "a", "reference": "1.50"}, {"prompt": "b", "reference": None}, {"prompt": "a", "reference": "-2.00"},
    ]  # fmt: skip
    told = json.loads(made.to_table()["metadata"][0].as_py())
    assert told == {"when": "2024-05-06T07:08:09", "more": {"x": [1, 2]}, "tags": ["p"], "raw": "/wA="}


def test_saved_datasets(bring: Any, tmp_path: Path) -> None:
    import datasets

    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(str(tmp_path / "one"), num_shards=2)
    assert truth(bring("one", "Prompt")) == ROWS
    both = datasets.DatasetDict(
        {"train": whole, "test": datasets.Dataset.from_list([{"prompt": "x", "reference": "y"}])}
    )
    both.save_to_disk(str(tmp_path / "two"))
    (tmp_path / "two" / "train" / "cache-1234.arrow").write_bytes(b"no data of the dataset")
    made = bring("two", "Prompt").to_table().to_pylist()
    assert [row["split"] for row in made] == ["test", *["train"] * 5]
    assert truth(bring("two", "Prompt", split="train")) == ROWS


def test_urls_and_datasets_by_name(bring: Any, tmp_path: Path, store: Store) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe({"/box/a.jsonl": jsonl(ROWS).encode()})
    assert truth(resolve("memory://box/a.jsonl", tmp_path, ("Prompt",), store).adopt(store)) == ROWS
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "train.jsonl").write_text(jsonl(ROWS))
    (tmp_path / "named" / "test.jsonl").write_text(jsonl(ROWS[:1]))
    assert truth(resolve("hub:named?split=train", tmp_path, ("Prompt",), store).adopt(store)) == ROWS
    rows = bring("named", "Prompt").to_table().to_pylist()
    assert [row["split"] for row in rows] == ["test", *["train"] * 5]
    assert "split" not in bring("named/test.jsonl", "Prompt").to_table().column_names


def test_a_key_that_comes_late_and_a_number_among_texts_are_kept(bring: Any, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"p{i}"} for i in range(300)]
    rows[250] |= {"reference": 42, "extra": {"deep": [1]}}
    rows[299] |= {"reference": 0.5}
    (tmp_path / "a.jsonl").write_text(jsonl(rows))
    made = bring("a.jsonl", "Prompt").to_table().to_pylist()
    assert [made[i]["reference"] for i in (0, 250, 299)] == [None, "42", "0.5"]
    assert json.loads(made[250]["metadata"]) == {"extra": {"deep": [1]}}
    (tmp_path / "l.csv").write_bytes("prompt,reference\nq,a\nr,café\n".encode("latin-1"))
    (told,) = rejected(bring("l.csv", "Prompt"))
    assert told["detail"].startswith("l.csv:3: `reference`: byte 0xe9 at character 3 is not UTF-8; `encoding` may say")
    assert [row["reference"] for row in truth(bring("l.csv", "Prompt", encoding="latin-1"))] == ["a", "café"]
    (tmp_path / "a.csv").write_text("prompt,reference\nq,007\nr,1e3\ns,\n")
    assert [row["reference"] for row in truth(bring("a.csv", "Prompt"))] == ["007", "1e3", None]


def test_bad_lines_are_told_by_file_and_line(bring: Any, tmp_path: Path) -> None:
    lines = ['{"text": "one"}', "", '{"text": NaN}', "\ufeff" + '{"text": "two"}', '{"text": "a", "text": "b"}', "{broken", '["list"]',
             '{"text": {"a": 1}}', '{"text": "\\ud800"}', '{"other": 1}', '{"text": "three"}']  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    said: list[str] = []
    made = bring("a.jsonl", "Document", said)
    assert made.to_table()["text"].to_pylist() == ["one", "two", "three"]
    told = rejected(made)
    assert [row["detail"].split(": ")[0] for row in told] == [f"a.jsonl:{n}" for n in (3, 5, 6, 7, 8, 9, 10)]
    assert [row["reason"] for row in told] == [
        "bad_json", "bad_json", "bad_json", "bad_json", "bad_type", "invalid_utf8", "missing_column",
    ]  # fmt: skip
    assert "NaN is not JSON" in told[0]["detail"] and "`text` stands twice" in told[1]["detail"]
    assert told[4]["detail"] == 'a.jsonl:8: `text`: expected a text, found the object {"a": 1}'
    assert made.manifest["failed"] == 7 and "3 rows: texts; 7 rejected" in said[-1]


def test_folders_links_and_what_is_no_data(bring: Any, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    for folder in (blobs, snapshot / "data", tmp_path / "far"):
        folder.mkdir(parents=True)
    (blobs / "abc").write_text(jsonl(ROWS[:2]))
    (tmp_path / "far" / "more.jsonl").write_text(jsonl(ROWS[2:]))
    (snapshot / "data" / "rows.jsonl").symlink_to(blobs / "abc")
    (snapshot / "linked").symlink_to(tmp_path / "far")
    (snapshot / "data" / "loop").symlink_to(snapshot)
    (snapshot / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    os.mkfifo(snapshot / "pipe.jsonl")
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
    (snapshot / "dataset_info.json").write_text("{}")
    (snapshot / ".hidden.jsonl").write_text(jsonl(ROWS))
    said: list[str] = []
    assert truth(bring("snapshot", "Prompt", said)) == ROWS
    told = "\n".join(said)
    assert "gone.jsonl is left out: a link to nothing" in told and "pipe.jsonl is left out: no regular file" in told
    assert "README.md" in told and "dataset_info.json" in told and "a link to a folder that holds it" in told
    assert truth(bring("snapshot/**/*.jsonl", "Prompt")) == ROWS
    cards = tmp_path / "cards"
    cards.mkdir()
    (cards / "README.md").write_text("A text of its own.")
    assert bring("cards", "Document").rows == 1
    (tmp_path / "odd[1].jsonl").write_text(jsonl(ROWS))
    assert truth(bring("odd[1].jsonl", "Prompt")) == ROWS


def test_the_same_name_in_two_folders_and_ids_that_repeat(bring: Any, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / "both" / folder).mkdir(parents=True)
        (tmp_path / "both" / folder / "x.jsonl").write_text(jsonl([{"id": 1, "text": "same"}, {"text": "same"}]))
    said: list[str] = []
    rows = bring("both", "Document", said).to_table().to_pylist()
    assert [row["text"] for row in rows] == ["same"] * 4 and len({row["id"] for row in rows}) == 4
    assert rows[0]["id"] == "1" and json.loads(rows[2]["metadata"]) == {"id": 1}
    assert "1 rows repeat an id" in said[-1]


def test_what_is_no_data_is_said_before_anything_is_read(bring: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.docx").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"can't tell the format of .*notes\.docx"):
        bring("notes.docx", "Document")
    with pytest.raises(UserError, match="there is no file or folder"):
        bring("nothing.jsonl", "Document")
    (tmp_path / "a.jsonl").write_text('{"prompt": "q"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:1: `reference`: there is no column `refrence`"):
        bring("a.jsonl", "Prompt", columns={"reference": "refrence"})
