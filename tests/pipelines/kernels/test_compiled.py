"""Kernels give what the jitted functions give, are compiled once, and need no numba afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from pipelines.kernels import compiled
from pipelines.kernels.word_hashes import overlap


@numba.njit
def shared(a: Any, b: Any, scale: float, out: Any) -> int:
    out[0] = scale * overlap(a, b)
    return len(a) - len(b)


@numba.njit
def allocates(a: Any) -> int:
    return len(np.zeros(len(a)).copy())


@numba.njit
def raises(a: Any) -> int:
    if len(a) > 1:
        raise ValueError("too long")
    return 0


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps machine code in the test's folder."""
    monkeypatch.setattr(compiled, "cache_folders", lambda: [tmp_path / "code"])


def test_a_kernel_gives_what_the_function_gives_whatever_the_types(tmp_path: Path) -> None:
    run = compiled.kernel(__name__, "shared")
    for kind in (np.uint64, np.int32):
        a, b = np.array([1, 3, 5, 9], kind), np.array([3, 4, 9], kind)
        out = np.zeros(1)
        assert run(a, b, 1.5, out) == 1 and out.tolist() == [3.0]
    assert run(b, a, 2.0, out) == -1
    assert len(list((tmp_path / "code").glob("shared-*.o"))) == 2  # one for each kind of arrays


def test_code_is_kept_and_made_again_if_the_file_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, out = np.array([1, 2], np.uint64), np.zeros(1)
    compiled.kernel(__name__, "shared")(a, a, 1.0, out)
    (file,) = (tmp_path / "code").iterdir()
    kept = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "_compile", lambda *_: pytest.fail("compiled again"))
        assert compiled.kernel(__name__, "shared")(a, a, 3.0, out) == 0 and out[0] == 6
    file.write_bytes(kept[:-100])
    assert compiled.kernel(__name__, "shared")(a, a, 4.0, out) == 0 and out[0] == 8
    assert len(file.read_bytes()) == len(kept)


def test_what_is_no_kernel_is_refused() -> None:
    with pytest.raises(RuntimeError, match="does not stand alone"):
        compiled.kernel(__name__, "allocates")(np.zeros(3))
    run = compiled.kernel(__name__, "raises")
    assert run(np.zeros(1)) == 0
    with pytest.raises(RuntimeError, match="raised"):
        run(np.zeros(2))
    with pytest.raises(ValueError, match="contiguous"):
        run(np.zeros(8)[::2])


def test_deduplicating_imports_neither_numba_nor_pandas(tmp_path: Path) -> None:
    """It takes a file of copies to touch every step; a second process finds the code of the first."""
    program = """
import json, sys
from engine.store.store import Store
from engine.execution.worker import carry_out
from pipelines.dedup.stage import Dedup
store = Store(sys.argv[2])
done = carry_out(store, "dedup", Dedup(seed=int(sys.argv[3])), {"documents": {"d": store.get(sys.argv[1])}})
print(json.dumps([done.rows, sorted({"numba", "pandas", "torch", "transformers", "scipy", "sklearn"} & set(sys.modules))]))
"""
    from benchmarks.curation import documents
    from benchmarks.parts.near_duplicates import write

    text = " ".join(f"word{i}" for i in range(100))
    write([text, text + " more", text, "other words stand here, all by themselves", "!!", "!!"], tmp_path / "x.parquet")
    artifact = documents(tmp_path / "x.parquet", tmp_path / "store")
    said: list[Any] = []
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", program, artifact, str(tmp_path / "store"), seed],
            capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3],
        )  # fmt: skip
        said.append(json.loads(run.stdout))
    assert said[1] == [3, []]
