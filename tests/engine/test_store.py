"""The store speaks to anything fsspec knows: here a real S3 protocol, where nothing can be renamed."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import flywheel
from engine.errors import Damaged
from engine.store.files import scratch_home
from engine.store.parquet import encode, read_parquet
from engine.store.store import Store


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux lists them")
def test_reading_starts_no_thread(run_store: Store) -> None:
    """A process that ends while Arrow's threads start is aborted by it: one in five to fifty on busy cores."""
    louder = run_store.find("toy/louder")
    script = f"""
import os
from engine.store.files import scratch_home
from engine.store.store import Store
artifact = Store({run_store.url!r}).get({louder.id!r})
threads = set(os.listdir("/proc/self/task"))
rows = len(artifact.to_table()), sum(map(len, artifact.batches()))
print(*rows, len(set(os.listdir("/proc/self/task")) - threads))
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(louder.rows), str(louder.rows), "0"]


def test_a_run_on_s3_gives_the_same_digests_as_on_disk(recipe: Path, run_store: Store, bucket: str) -> None:
    remote = flywheel.run(recipe, store=bucket)
    on_disk = {name: run_store.find(f"toy/{name}") for name in remote}
    assert {n: a.digest for n, a in remote.items()} == {n: a.digest for n, a in on_disk.items()}
    assert remote["louder"].to_polars().equals(on_disk["louder"].to_polars())
    assert (remote["model"].path / "weights.json").read_text() == (on_disk["model"].path / "weights.json").read_text()
    again = Store(bucket)
    assert again.find("toy/model").verify() == []
    assert len(list(again.artifacts())) == 5 and again.list("leases") == []
    for name, file in (("louder", remote["louder"].parts()[0]), ("model", "weights.json")):
        made = again.find(f"toy/{name}")
        object_ = again.path("artifacts", made.id, file)
        data = bytearray(again.fs.cat_file(object_))
        data[len(data) // 2] ^= 1
        again.fs.pipe_file(object_, bytes(data))
        shutil.rmtree(scratch_home())  # the copies of what it was
        with pytest.raises(Damaged, match=f"{file} is damaged"):
            made.to_table() if name == "louder" else made.location
        assert made.verify() == [file]


def test_a_damaged_file_is_noticed(run_store: Store) -> None:
    made = run_store.find("toy/lines")
    assert made.verify() == []
    file = made.path / made.parts()[0]
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert made.verify() == [made.parts()[0]]


def test_a_folder_without_a_manifest_is_no_artifact(run_store: Store) -> None:
    made = run_store.find("toy/lines")
    (made.path / "manifest.json").unlink()
    assert run_store.get(made.id) is None


def test_names_resolve_by_run_stage_and_key(run_store: Store) -> None:
    made = run_store.find("toy/model")
    for name in ("model", made.id, made.key[:8]):
        assert run_store.find(name).id == made.id


def test_some_rows_of_a_part_don_t_cost_all_of_it() -> None:
    """A slice was read by decompressing its whole part: an index of one file with a million rows read it two hundred times."""
    rows = pa.table({"id": [f"{i:06}" for i in range(25_000)]})
    data = encode(rows)
    file = pq.ParquetFile(io.BytesIO(data))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [10_000, 10_000, 5_000]
    assert read_parquet(io.BytesIO(data)).equals(rows)
