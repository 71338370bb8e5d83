from __future__ import annotations

import gzip
import json
import pydoc_data.topics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import StageFailed, UserError
from engine.store import Artifact
from pipelines.formats import lines
from pipelines.read import Read

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
    import pipelines.read as module
    from engine.store import Store
    from engine.worker import carry_out

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
