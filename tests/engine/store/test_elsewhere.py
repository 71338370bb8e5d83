"""A store on S3: what is read stays here up to a bound, in few requests; the server's own log counts them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from engine.errors import Damaged, UserError
from engine.stage.job import Job
from engine.store import cache, leased_writes, range_reads, request_counts, versions
from engine.store.artifact import Artifact
from engine.store.files import scratch_home
from engine.store.holder import Superseded
from engine.store.known_digests import shared_digests
from engine.store.lease import is_held, lease
from engine.store.store import Store
from engine.store.writer import ArtifactWriter
from engine.upkeep.collection import find_unneeded, remove

KEY = "toy_read-0123456789abcdef"


def requests(caplog: pytest.LogCaptureFixture) -> Counter[str]:
    """What the server was asked since the last time, as its log has it."""
    said = [
        re.search(r'"(?:\x1b\[\d+m)*([A-Z]+) (\S+)', r.getMessage()) for r in caplog.records if r.name == "werkzeug"
    ]
    caplog.clear()
    found = Counter[str]()
    for one in filter(None, said):
        verb = "LIST" if "list-type=2" in one[2] else "DELETE" if one[2].endswith("?delete") else one[1]
        found[{"POST": "PUT"}.get(verb, verb)] += 1
    return found


def artifact(store: Store, files: dict[str, bytes], put: bool = True) -> Artifact:
    """An artifact of these files, without a manifest in the store."""
    for name, data in files.items() if put else []:
        store.put(data, "artifacts", KEY, *name.split("/"))
    entries = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    return Artifact(store, KEY, {"files": entries, "schema": "Model", "rows": 0})


def read(made: Artifact, name: str) -> bytes:
    with made.opened(name) as file:
        return file.read()


def test_a_file_comes_once_and_in_ranges(
    bucket: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(range_reads, "RANGE", 1000)
    data = np.random.default_rng(1).bytes(25_500)
    made = artifact(Store(bucket), {"large": data, "small": b"abc", "empty": b"", "even": data[:2000]})
    requests(caplog)
    assert read(made, "large") == data and requests(caplog) == {"GET": 26}
    assert read(made, "large") == data and not requests(caplog)
    assert read(made, "small") == b"abc" and read(made, "empty") == b"" and requests(caplog) == {"GET": 2}
    assert read(made, "even") == data[:2000] and requests(caplog) == {"GET": 2}
    assert request_counts.sent()["GET"] >= 30


def test_several_that_want_a_file_fetch_it_once(bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    made = artifact(Store(bucket), {"one": b"x" * 1000})
    requests(caplog)
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: read(made, "one"), range(8))) == {b"x" * 1000}
    assert requests(caplog) == {"GET": 1}


def test_damage_here_is_fetched_anew_and_damage_there_is_told(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_reads, "RANGE", 100)
    store, data = Store(bucket), bytes(range(250)) * 2
    made = artifact(store, {"one": data})
    entry = made.manifest["files"]["one"]["sha256"]
    assert read(made, "one") == data
    (cache.home() / entry[:2] / entry / "data").write_bytes(data[:-1] + b"?")
    assert read(made, "one") == data
    for wrong, words in (
        (data[:-1] + b"?", "its bytes are not those that were written"),
        (data[:-1], "it has 499 bytes instead of 500"),
        (data[:300], "it has 300 bytes instead of 500"),
        (data + b"?", "it has 501 bytes instead of 500"),
    ):
        store.put(wrong, "artifacts", KEY, "one")
        (cache.home() / entry[:2] / entry / "data").unlink(missing_ok=True)
        with pytest.raises(Damaged, match=rf"one is damaged .{words}"):
            read(made, "one")
        assert made.verify() == ["one"]
    store.delete([("artifacts", KEY, "one")])
    with pytest.raises(Damaged, match=r"one is damaged .it is missing"):
        read(made, "one")
    assert made.incomplete() == "one is missing"


def test_what_was_not_used_for_the_longest_time_goes_and_what_is_in_use_stays(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLYWHEEL_CACHE_GB", "0.00001")  # 10,000 bytes
    store = Store(bucket)
    made = artifact(store, {f"{i}": b"%d" % i * 3000 for i in range(4)})
    held = [made.manifest["files"][f"{i}"]["sha256"] for i in range(4)]
    assert read(made, "0") and read(made, "1") and read(made, "0")
    with made.opened("1") as file:
        os.utime(cache.home() / held[1][:2] / held[1], ns=(0, 0))
        assert read(made, "2") and read(made, "3")
        assert not cache.holds(held[1]) and cache.holds(held[3])
        assert file.read() == b"1" * 3000
    # A model: its files have names in a folder that this process has.
    place = made.path
    assert sorted(p.read_bytes()[:1] for p in place.iterdir()) == [b"0", b"1", b"2", b"3"]
    big = artifact(store, {"big": b"b" * 9000})
    assert read(big, "big") and all((place / f"{i}").read_bytes() == b"%d" % i * 3000 for i in range(4))
    assert all(map(cache.holds, held))  # to take them away would make no room
    assert not cache.drop_view(place)
    os.close(cache._held.pop(place))  # pyright: ignore[reportPrivateUsage]  # as where the process ends
    assert cache.drop_view(place) and not place.exists()
    monkeypatch.setenv("FLYWHEEL_CACHE_GB", "much")
    with pytest.raises(UserError, match="FLYWHEEL_CACHE_GB is `much`: expected a number of GB"):
        read(artifact(store, {"new": b"new"}), "new")


def test_the_next_files_come_while_one_is_read(bucket: str) -> None:
    store = Store(bucket)
    files = {f"data/{i:05d}.parquet": b"%d" % i for i in range(8)}
    made = artifact(store, files)
    names = made.parts()
    arrived = threading.Event()
    for name in names[:2]:
        read(made, name)
    for _ in range(200):
        if all(cache.holds(made.manifest["files"][name]["sha256"]) for name in names[2:4]):
            break
        arrived.wait(0.02)
    else:
        pytest.fail("they did not come")
    assert not cache.holds(made.manifest["files"][names[6]]["sha256"])


def test_what_was_written_is_not_read_back(
    bucket: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = Store(bucket)
    rows = {"id": ["a", "b"], "parents": [[], []], "text": ["x", "y"], "source": ["s", "s"], "offset": [0, 1]}
    with shared_digests(), lease(store, KEY):
        writer = ArtifactWriter(store, KEY)
        requests(caplog)
        writer.put_part("00000", pa.table(rows), "Document")
        assert requests(caplog) == {"GET": 1, "PUT": 1}  # one look at the lease
        (tmp_path / "files" / "deep").mkdir(parents=True)
        for name in ("one", "deep/two"):
            (tmp_path / "files" / name).write_text(name)
        writer.put_files(tmp_path / "files")
        assert requests(caplog) == {"GET": 2, "PUT": 2} and not [p for p in tmp_path.glob("files/**/*") if p.is_file()]
        found = writer.contents()
        assert requests(caplog) == {"LIST": 1}
        assert found.rows == 2 and found.files["data/00000.parquet"]["rows"] == 2
        assert found.files["deep/two"]["sha256"] == hashlib.sha256(b"deep/two").hexdigest()
    with shared_digests():  # another run knows nothing
        assert writer.contents() == found and requests(caplog)["GET"] > 3
        assert store.entries("artifacts", KEY).keys() == found.files.keys()
    monkeypatch.setattr("engine.store.writer.WORTH_ASKING", 0)
    shutil.rmtree(scratch_home())
    with shared_digests():  # on another machine: the digests were sent along; rows are counted in the footer
        requests(caplog)
        assert writer.contents() == found
        assert requests(caplog) == {"LIST": 1, "HEAD": 3, "GET": 1}


def test_a_large_file_goes_in_parts_and_only_where_there_is_none(
    bucket: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    size = 5 << 20  # the least that S3 takes as a part
    monkeypatch.setattr(versions, "PART", size)
    monkeypatch.setattr(leased_writes, "PART", size)
    store, data = Store(bucket), np.random.default_rng(2).bytes(2 * size + 7)
    (tmp_path / "model").write_bytes(data)
    with lease(store, KEY):
        requests(caplog)
        store.put_file(tmp_path / "model", "artifacts", KEY, "model", kept=True)
        assert requests(caplog) == {"HEAD": 1, "GET": 1, "PUT": 5}  # begun, three parts, ended
    assert store.read("artifacts", KEY, "model") == data and not (tmp_path / "model").exists()
    (tmp_path / "model").write_bytes(data[:-1] + b"?")
    assert versions.put_file_version(store, tmp_path / "model", None, "artifacts", KEY, "model") is None
    assert store.read("artifacts", KEY, "model") == data and store.fs.uploads(store.path("artifacts")) == []
    with lease(store, KEY):
        monkeypatch.setattr(leased_writes, "etag", lambda *_: '"another"')
        with pytest.raises(Superseded):
            store.put_file(tmp_path / "model", "artifacts", KEY, "model")
    assert store.read("artifacts", KEY, "model") == data


def job(store: Store) -> Job:
    return Job(store, KEY, "Document", {}, 0)


def test_what_a_phase_leaves_for_the_next(bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    exchange = job(Store(bucket)).exchange
    values = np.arange(1000, dtype=np.int64)
    exchange.put_array("bands/00000", values)
    exchange.put_array("bands/00001", values[:0])
    exchange.put("other", b"x")
    requests(caplog)
    assert (exchange.array("bands/00000", np.int64) == values).all() and requests(caplog) == {"GET": 1}
    assert (exchange.array("bands/00000", np.int64, 10, 20) == values[10:20]).all() and requests(caplog) == {"GET": 1}
    assert (exchange.array("bands/00000", np.int64, 990) == values[990:]).all()
    assert (exchange.array("bands/00000", np.int64, 990, 2000) == values[990:]).all()
    assert len(exchange.array("bands/00000", np.int64, 7, 7)) == 0 == len(exchange.array("bands/00001", np.int64))
    assert exchange.names("bands") == ["bands/00000", "bands/00001"] and exchange.exists("other")
    requests(caplog)
    exchange.drop("bands")
    assert requests(caplog) == {"LIST": 1, "DELETE": 1} and exchange.names("bands") == []
    exchange.drop("other")
    assert not exchange.exists("other")
    for i in range(3):
        exchange.put(f"{i}", b"")
    requests(caplog)
    exchange.clear()
    assert requests(caplog) == {"LIST": 1, "DELETE": 1}
    with pytest.raises(FileNotFoundError):
        exchange.get("0")


def test_leftovers_of_killed_stages_go_once_nobody_keeps_their_lease(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.upkeep.collection.GRACE_S", 0.0)
    store = Store(bucket)
    job(store).exchange.put("bands/00000", b"x" * 100)
    bucket_, _, root = store.root.partition("/")
    store.fs.call_s3("create_multipart_upload", Bucket=bucket_, Key=f"{root}/artifacts/{KEY}/model")
    dead = Store(bucket)
    with lease(dead, KEY) as held:
        held.rest()  # as where its machine is gone
        assert is_held(store, KEY)
        assert [one.what for one in find_unneeded(store, older=0).unneeded] == ["leftover"]
        monkeypatch.setattr("engine.store.object_lease.TICK_S", -1000.0)  # half an hour later
        found = find_unneeded(store, older=0).unneeded
        assert {(one.what, one.size) for one in found} == {("scratch", 100), ("leftover", 0)}
    assert all(remove(store, one) for one in found)
    assert store.entries("work") == {} and store.fs.uploads(store.path("artifacts")) == []
