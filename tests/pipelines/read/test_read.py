from __future__ import annotations

import gzip
import json
import os
import pydoc_data.topics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from engine.errors import StageFailed, UserError
from engine.reader.records import lines
from engine.store.artifact import Artifact
from pipelines.read.stage import Read

Build = Callable[..., Artifact]


def rows(artifact: Artifact) -> list[dict[str, Any]]:
    return artifact.to_table().to_pylist()


def rejected(artifact: Artifact) -> list[dict[str, Any]]:
    table = artifact.rejected()
    return table.to_pylist() if table else []


def test_bad_documents_are_kept_with_a_reason_and_the_rest_is_read(build: Build, tmp_path: Path) -> None:
    good = {"a.txt": "A good one.", "é.txt": "Schön, 好."}
    for name, text in good.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "utf8.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "space.txt").write_bytes(b" \n\t")
    (tmp_path / "nul.txt").write_bytes(b"a\0b\0")
    (tmp_path / "long.txt").write_bytes(b"x" * 50_000_000)
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"hello " * 1000)[:-20])
    read = build("read", base=tmp_path, paths=["*.txt", "*.gz"])
    assert {r["source"]: r["text"] for r in rows(read)} == good
    reasons = {r["source"]: r["reason"] for r in rejected(read)}
    assert reasons == {
        "utf8.txt": "invalid_utf8", "empty.txt": "empty", "space.txt": "empty",
        "nul.txt": "nul_bytes", "long.txt": "too_long", "cut.txt.gz": "unreadable",
    }  # fmt: skip
    details = {r["source"]: r["detail"] for r in rejected(read)}
    assert details["utf8.txt"].startswith("byte 0xe9 at 3")
    assert details["long.txt"].startswith("50000000 bytes")
    assert all(r["failed"] for r in rejected(read))
    assert max(len(r["text"] or "") for r in rejected(read)) <= 1000


def test_jsonl_keeps_byte_offsets_and_names_each_broken_line(build: Build, tmp_path: Path) -> None:
    good = [json.dumps({"text": f"line {i} ü", "n": i}, ensure_ascii=False).encode() for i in range(3)]
    content = [good[0], b"{broken", good[1], b"", b'["list"]', b'{"text": "\\ud800"}', b'{"other": 1}', good[2] + b"\r"]
    content += [
        b'{"text": "' + b"y" * 50_000_000 + b'"}',
        b'{"text": "caf\xe9"}',
        b'{"text": null}',
        b'{"text": "last"}',
    ]
    data = b"\n".join(content)
    (tmp_path / "a.jsonl").write_bytes(data)
    read = build("read", base=tmp_path, paths=["a.jsonl"], max_bytes=1_000_000)
    table = rows(read)
    assert [r["text"] for r in table] == ["line 0 ü", "line 1 ü", "line 2 ü", "last"]
    for row in table[:3]:
        assert data[row["offset"] :].startswith(b'{"text": "' + row["text"].encode())
        assert json.loads(row["metadata"]) == {"n": int(row["text"][5])}
    assert sorted(r["reason"] for r in rejected(read)) == sorted(
        ["bad_json", "bad_json", "invalid_utf8", "missing_text", "too_long", "invalid_utf8", "empty"]
    )
    for row in rejected(read):  # the offset is where the line begins
        assert row["offset"] == 0 or data[row["offset"] - 1 : row["offset"]] == b"\n"


@pytest.mark.parametrize("block", [1, 2, 7, 1000])
def test_lines_agree_with_split_whatever_the_block_size(block: int) -> None:
    import io

    data = b"one\n\nthree three\nfour"
    got = list(lines(io.BytesIO(data), limit=100, block_size=block))
    assert [piece for _, _, piece in got] == data.split(b"\n")
    assert all(data[offset : offset + size] == piece for offset, size, piece in got)


def test_csv_and_parquet_take_a_template_and_survive_broken_rows(build: Build, tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_bytes(b'country,capital,n\nFrance,Paris,1\nshort\n"Per\xff",Lima,2\n"Ki,ri",Tarawa,3\n')
    csv = build("read", base=tmp_path, paths=["c.csv"], text="{{ country }}: {{ capital }}")
    assert [(r["text"], r["offset"], r["metadata"]) for r in rows(csv)] == [
        ("France: Paris", 0, '{"country": "France", "capital": "Paris", "n": "1"}'),
        ("Ki,ri: Tarawa", 3, '{"country": "Ki,ri", "capital": "Tarawa", "n": "3"}'),
    ]
    assert [(r["reason"], r["offset"]) for r in rejected(csv)] == [("bad_csv", 1), ("invalid_utf8", 2)]

    pq.write_table(pa.table({"body": ["x y", "z"], "score": [float("nan"), 2.0]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-5])
    read = build("read", base=tmp_path, paths=["*.parquet"], text="body")
    assert [(r["text"], r["offset"], r["metadata"]) for r in rows(read)] == [
        ("x y", 0, '{"score": null}'),
        ("z", 1, '{"score": 2.0}'),
    ]
    assert [r["reason"] for r in rejected(read)] == ["unreadable"]
    with pytest.raises(UserError, match=r"no column `bod`\. Did you mean `body`"):
        build("read", base=tmp_path, paths=["a.parquet"], text="bod")


def test_compressed_lines(build: Build, tmp_path: Path) -> None:
    line = b'{"text": "packed"}\n'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line))
    (tmp_path / "b.jsonl.zst").write_bytes(pa.compress(line, codec="zstd", asbytes=True))
    assert [r["text"] for r in rows(build("read", base=tmp_path, paths=["*.jsonl.*"]))] == ["packed", "packed"]


def test_python_gives_docstrings_and_long_literals_with_their_place(build: Build, tmp_path: Path) -> None:
    source = '''"""Module docstring, ünicode."""
class A:
    def f(self):
        """
        Indented docstring
            of two lines.
        """
        return "short", f"an f-string that is long enough {self} but in pieces", "a literal that is long enough"
'''
    (tmp_path / "m.py").write_text(source, encoding="utf-8")
    (tmp_path / "broken.py").write_text("def (:")
    read = build("read", base=tmp_path, paths=["*.py"], min_chars=20)
    assert [r["text"] for r in rows(read)] == [
        "Module docstring, ünicode.",
        "Indented docstring\n    of two lines.",
        "a literal that is long enough",
    ]
    assert [json.loads(r["metadata"] or "null") for r in rows(read)] == [{"docstring": ""}, {"docstring": "A.f"}, None]
    data = source.encode()
    assert [data[r["offset"] : r["offset"] + 1] for r in rows(read)] == [b'"'] * 3
    assert [(r["source"], r["reason"]) for r in rejected(read)] == [("broken.py", "bad_syntax")]


def test_the_standard_library(build: Build) -> None:
    read = build("read", paths=["stdlib:pydoc_data/topics.py"])
    topics = {text for text in pydoc_data.topics.topics.values() if len(text) >= 200}
    assert topics <= {r["text"] for r in rows(read)}
    assert {r["source"] for r in rows(read)} == {"pydoc_data/topics.py"}


def test_identity_is_the_content_by_relative_path(tmp_path: Path) -> None:
    for root in ("one", "two"):
        (tmp_path / root / "sub").mkdir(parents=True)
        (tmp_path / root / "sub" / "a.txt").write_text("same")
    one = Read(paths=[str(tmp_path / "one/**/*.txt")]).sources(".")
    assert one == Read(paths=["two/**/*.txt"]).sources(str(tmp_path))
    assert list(one) == ["sub/a.txt"]
    (tmp_path / "two/sub/a.txt").write_text("other")
    assert one != Read(paths=["two/**/*.txt"]).sources(str(tmp_path))
    both = Read(paths=["one/sub/*.txt", "two/sub/*.txt", "one/sub/a.txt"]).sources(str(tmp_path))
    assert list(both) == ["a.txt", "a.txt#2"]


def test_no_match_names_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "guide.md").write_text("x")
    with pytest.raises(UserError, match=r"no file matches `dosc/\*.md`.*Did you mean `docs`"):
        Read(paths=["dosc/*.md"]).sources(str(tmp_path))
    with pytest.raises(UserError, match=r"Did you mean `guide\.md`"):
        Read(paths=["docs/giude.md"]).sources(str(tmp_path))
    with pytest.raises(UserError, match="all left out by `exclude`"):
        Read(paths=["docs/*.md"], exclude=["g*"]).sources(str(tmp_path))


def test_limit_and_a_folder(build: Build, tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.md").write_text(f"text {i}")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert len(rows(build("read", base=tmp_path, paths=["."]))) == 5
    assert [r["text"] for r in rows(build("read", base=tmp_path, paths=["."], limit=2))] == ["text 0", "text 1"]
    with pytest.raises(UserError, match="can't tell the format"):
        build("read", base=tmp_path, paths=["*.png"])
    with pytest.raises(StageFailed, match="no row came out: invalid_utf8"):
        build("read", base=tmp_path, paths=["*.png"], format="text")


def test_a_killed_read_goes_on_and_ends_with_the_same_bytes(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipelines.read.work as module
    from engine.execution.worker import carry_out
    from engine.store.store import Store

    monkeypatch.setattr(module, "PART_ROWS", 2)
    monkeypatch.setattr(module, "GROUP_FILES", 3)
    for i in range(10):
        (tmp_path / f"{i}.md").write_text(f"text {i}")
    stage = Read(paths=["*.md"], limit=8)
    whole = carry_out(Store(str(tmp_path / "whole")), "read", stage, {}, str(tmp_path))

    def killed(event: dict[str, Any]) -> None:
        if event["event"] == "commit" and event["part"].startswith("00001-00000"):
            raise KeyboardInterrupt

    store = Store(str(tmp_path / "cut"))
    with pytest.raises(KeyboardInterrupt):
        carry_out(store, "read", stage, {}, str(tmp_path), emit=killed)
    again = carry_out(store, "read", stage, {}, str(tmp_path))
    assert again.digest == whole.digest and again.rows == 8


PAGE = """<!doctype html><html><head><title>A  title</title><meta charset="windows-1252"><script>var hidden = 1;</script></head>
<body><nav><a href="/">Home</a> <a href="/about">About us</a></nav>
<article><h1>Café society</h1><p>The first paragraph tells a story that is long enough to be the main text.</p>
<p>The second one ends it – “well”.</p></article><footer>Cookie policy</footer></body></html>"""


def test_html_gives_the_main_text_in_the_encoding_the_page_declares(build: Build, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes(PAGE.encode("windows-1252"))
    (tmp_path / "b.htm").write_text(PAGE, encoding="utf-8")
    (tmp_path / "empty.html").write_text("<html><script>1</script></html>")
    read = build("read", base=tmp_path, paths=["."])
    one, two = rows(read)
    assert one["text"] == two["text"]
    assert "Café society" in one["text"] and "– “well”." in one["text"]
    for gone in ("hidden", "Home", "Cookie", "<p>"):
        assert gone not in one["text"]
    assert json.loads(one["metadata"]) == {"title": "A title", "encoding": "cp1252"}
    assert json.loads(two["metadata"]) == {"title": "A title"}
    assert [(r["source"], r["reason"]) for r in rejected(read)] == [("empty.html", "empty")]


def pdf_of(pages: list[str]) -> bytes:
    """A PDF of one line a page, with a right cross-reference table."""
    count = len(pages)
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(count))
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids[{kids}]/Count {count}>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for i, text in enumerate(pages):
        drawn = f"BT /F1 12 Tf 50 700 Td ({text}) Tj ET"
        objects.append(
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Resources<</Font<</F1 3 0 R>>>>/Contents {5 + 2 * i} 0 R>>"
        )
        objects.append(f"<</Length {len(drawn)}>>stream\n{drawn}\nendstream")
    data, places = b"%PDF-1.4\n", list[int]()
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj{body}endobj\n".encode()
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    tail = f"trailer<</Size {len(objects) + 1}/Root 1 0 R>>\nstartxref\n{len(data)}\n%%EOF"
    return data + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{tail}".encode()


def test_pdf_gives_the_text_of_its_pages(build: Build, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf_of(["Page one says this.", "Page two says that."]))
    (tmp_path / "scan.pdf").write_bytes(pdf_of([""]))
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 nothing else")
    read = build("read", base=tmp_path, paths=["*.pdf"])
    assert [(r["text"], r["metadata"]) for r in rows(read)] == [
        ("Page one says this.\n\nPage two says that.", '{"pages": 2}')
    ]
    assert {r["source"]: r["reason"] for r in rejected(read)} == {"broken.pdf": "unreadable", "scan.pdf": "empty"}


def test_source_code_is_a_document_a_file(build: Build, tmp_path: Path) -> None:
    (tmp_path / "m.rs").write_text("fn main() {}\n")
    (tmp_path / "m.py").write_text("x = 1\n")
    assert [(r["text"], r["metadata"]) for r in rows(build("read", base=tmp_path, paths=["."], format="code"))] == [
        ("x = 1\n", '{"suffix": "py"}'), ("fn main() {}\n", '{"suffix": "rs"}'),
    ]  # fmt: skip
    assert [r["source"] for r in rows(build("read", base=tmp_path, paths=["*.rs"]))] == ["m.rs"]


def test_encodings(build: Build, tmp_path: Path) -> None:
    russian = "Правительство заявило, что не изменит закон до следующих выборов. " * 3
    (tmp_path / "a.txt").write_text(russian, encoding="utf-8")
    (tmp_path / "b.txt").write_text(russian, encoding="cp1251")
    (tmp_path / "c.csv").write_text(f'text\n"{russian}"\n', encoding="cp1251")
    (tmp_path / "d.jsonl").write_bytes(b"".join(
        json.dumps({"text": russian}, ensure_ascii=False).encode(codec) + b"\n" for codec in ("utf-8", "cp1251")
    ))  # fmt: skip
    found = rows(build("read", base=tmp_path, paths=["*"], encoding="detect"))
    assert [r["text"].strip() for r in found] == [russian.strip()] * 5
    assert [r["source"] for r in rejected(build("read", base=tmp_path, paths=["*"]))] == ["b.txt", "c.csv", "d.jsonl"]
    assert rows(build("read", base=tmp_path, paths=["b.txt"], encoding="cp1251"))[0]["text"] == russian
    (tmp_path / "e.txt").write_text("plain")
    told = rejected(build("read", base=tmp_path, paths=["b.txt", "*.jsonl", "e.txt"], encoding="ascii"))
    assert {r["reason"] for r in told} == {"bad_encoding"}
    for name in ("base64", "nonsense"):
        with pytest.raises(ValidationError, match="no text codec"):
            Read(paths=["x"], encoding=name)


def test_a_saved_dataset_is_read_as_arrow_and_by_name(build: Build, tmp_path: Path) -> None:
    import datasets

    saved = datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(2500)], "raw": [b"\x00\xff"] * 2500})
    saved.save_to_disk(str(tmp_path / "saved"), num_shards=2)
    found = rows(build("read", base=tmp_path, paths=["saved"]))
    assert [r["text"] for r in found] == [f"row {i}" for i in range(2500)]
    assert (found[1250]["source"], found[1250]["offset"]) == ("data-00001-of-00002.arrow", 0)
    assert found[0]["metadata"] == '{"raw": "<2 bytes>"}'

    folder = tmp_path / "named"
    folder.mkdir()
    saved.select(range(10)).to_parquet(folder / "train.parquet")
    datasets.Dataset.from_dict({"text": ["held out"]}).to_parquet(folder / "test.parquet")
    (tmp_path / "two").mkdir()
    both = {r["source"] for r in rows(build("read", base=tmp_path, paths=["hub:named"]))}
    assert both == {"train.parquet", "test.parquet"}
    held = rows(build("read", base=tmp_path, paths=["hub:named?split=test"]))
    assert [(r["text"], r["source"], r["offset"]) for r in held] == [("held out", "test.parquet", 0)]
    with pytest.raises(UserError, match=r"no split `tset`\. Did you mean `test`"):
        build("read", base=tmp_path, paths=["hub:named?split=tset"])
    with pytest.raises(UserError, match="can't be read as a dataset"):
        build("read", base=tmp_path, paths=["hub:two"])


def test_a_damaged_row_group_costs_its_rows_and_no_others(build: Build, tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    texts = [f"row {i} " + os.urandom(200).hex() for i in range(300)]
    pq.write_table(pa.table({"text": texts}), file, row_group_size=100, compression="zstd", use_dictionary=False)
    spoilt = bytearray(file.read_bytes())
    middle = pq.read_metadata(file).row_group(1).column(0).data_page_offset
    spoilt[middle + 200 : middle + 900] = bytes(700)
    file.write_bytes(spoilt)
    read = build("read", base=tmp_path, paths=["*.parquet"])
    assert [(r["offset"], r["text"]) for r in rows(read)] == [(i, texts[i]) for i in range(300) if not 100 <= i < 200]
    (told,) = rejected(read)
    assert told["reason"] == "unreadable" and told["detail"].startswith("row group 1: 100 rows from row 100 on")


def test_parquet_strings_that_are_not_utf8_and_columns_of_bytes(build: Build, tmp_path: Path) -> None:
    strings = pa.array([b"good", b"caf\xe9", b"a\0b", "fine é".encode()], pa.binary())
    offsets = strings.buffers()
    unchecked = pa.StringArray.from_buffers(4, offsets[1], offsets[2])
    pq.write_table(pa.table({"text": unchecked}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": strings}), tmp_path / "b.parquet")
    for name in ("a.parquet", "b.parquet"):
        read = build("read", base=tmp_path, paths=[name])
        assert [(r["text"], r["offset"]) for r in rows(read)] == [("good", 0), ("fine é", 3)]
        assert [(r["reason"], r["offset"]) for r in rejected(read)] == [("invalid_utf8", 1), ("nul_bytes", 2)]


def test_csv_with_an_open_quote_or_a_name_twice_loses_nothing_in_silence(build: Build, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,n\none,1\n"two,2\nthree,3\n')
    read = build("read", base=tmp_path, paths=["a.csv"])
    assert [r["text"] for r in rows(read)] == ["one"]
    (told,) = rejected(read)
    assert told["reason"] == "bad_csv" and "unexpected end of data" in told["detail"]
    (tmp_path / "b.csv").write_text("text,n,n\none,1,2\n")
    assert rows(build("read", base=tmp_path, paths=["b.csv"]))[0]["metadata"] == '{"n": "1", "n_2": "2"}'
    (tmp_path / "c.csv").write_bytes(b'text\n"' + b"x" * 3_000_000 + b'"\nlast\n')
    long = build("read", base=tmp_path, paths=["c.csv"], max_bytes=1_000_000)
    assert [r["text"] for r in rows(long)] == ["last"]
    assert [r["reason"] for r in rejected(long)] == ["too_long"]


def test_json_that_is_an_array_an_object_or_lines(build: Build, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "one"},\n 5, {"text": "two"}]')
    (tmp_path / "b.json").write_text('{\n "text": "three"\n}')
    (tmp_path / "c.json").write_text('{"text": "four"}\n{"text": "five"}\n{"te')
    (tmp_path / "d.json").write_text('[{"text": "cut"}, {"te')
    read = build("read", base=tmp_path, paths=["."])
    assert [(r["text"], r["offset"]) for r in rows(read)] == [
        ("one", 0), ("two", 2), ("three", 0), ("four", 0), ("five", 17),
    ]  # fmt: skip
    assert [(r["source"], r["reason"]) for r in rejected(read)] == [
        ("a.json", "bad_json"), ("c.json", "bad_json"), ("d.json", "bad_json"),
    ]  # fmt: skip


def test_any_fsspec_url(build: Build) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe(
        {"/bucket/deep/a.jsonl.gz": gzip.compress(b'{"text": "one"}\n{"text": "two"}\n'), "/bucket/b.txt": b"three"}
    )
    found = rows(build("read", paths=["memory://bucket/**/*.gz", "memory://bucket/b.txt"]))
    assert [(r["text"], r["source"], r["offset"]) for r in found] == [
        ("one", "deep/a.jsonl.gz", 0), ("two", "deep/a.jsonl.gz", 16), ("three", "b.txt", 0),
    ]  # fmt: skip
