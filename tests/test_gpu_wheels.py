"""Wheels that travel in crates come out of them as they were, and a broken one is not installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.parts import gpu_wheels
from benchmarks.parts.gpu_wheels import chosen, lacking, pack, packed, pins, there


@given(st.lists(st.integers(1, 500), max_size=30), st.integers(50, 200))
def test_every_byte_is_in_one_crate_and_none_is_too_large(sizes: list[int], piece: int) -> None:
    files = {Path(f"{number}.whl"): size for number, size in enumerate(sizes)}
    crates = packed(files, piece)
    assert all(0 < crate.size <= piece for crate in crates)
    for file, size in files.items():
        parts = sorted((first, length) for crate in crates for one, first, length in crate.files if one == file)
        assert [first for first, _ in parts] == [sum(length for _, length in parts[:n]) for n in range(len(parts))]
        assert sum(length for _, length in parts) == size
    # Best fit leaves at most one crate half empty, so there are fewer than twice as many as the bytes need.
    assert len(crates) <= max(1, 2 * sum(sizes) / piece) or not sizes


def wheel(folder: Path, name: str, size: int) -> Path:
    """A package of one module and so many random bytes."""
    file = folder / f"{name}-1.0-py3-none-any.whl"
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(
            f"{name}/__init__.py",
            "from pathlib import Path\nsize = len((Path(__file__).parent / 'data').read_bytes())\n",
        )
        archive.writestr(f"{name}/data", np.random.default_rng(0).bytes(size))
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "".join(f"{name}/{part},,\n" for part in ("__init__.py", "data")))
    return file


@pytest.fixture
def arrived(tmp_path: Path) -> Path:
    """A folder with the files of all crates, as they are put together on the other machine."""
    wheels = [wheel(tmp_path, "toylarge", 250_000), wheel(tmp_path, "toysmall", 10)]
    crates = pack(wheels, tmp_path / "crates", 100_000)
    assert len(crates) == 3
    there = tmp_path / "there"
    there.mkdir()
    for crate in crates:
        assert sum(file.stat().st_size for file in crate.glob("*.whl*")) <= 100_000
        for file in crate.iterdir():
            (there / file.name).write_bytes(file.read_bytes())
    return there


def unpack(there: Path, site: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}  # whose `python3` is this one
    return subprocess.run(["sh", str(there / "unpack.sh"), str(site)], capture_output=True, text=True, env=environment)


def test_what_was_cut_is_whole_again_and_can_be_imported(arrived: Path, tmp_path: Path) -> None:
    done = unpack(arrived, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    program = "import toylarge, toysmall; print(toylarge.size, toysmall.size)"
    said = subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "site", capture_output=True, text=True)
    assert said.stdout.split() == ["250000", "10"]


def test_a_damaged_piece_is_not_installed(arrived: Path, tmp_path: Path) -> None:
    part = arrived / "toylarge-1.0-py3-none-any.whl.001"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    done = unpack(arrived, tmp_path / "site")
    assert done.returncode and "toylarge-1.0-py3-none-any.whl" in done.stdout + done.stderr
    assert not (tmp_path / "site").exists()


def test_pins_are_read() -> None:
    lines = [
        "torch==2.11.0+cu130",
        "ruamel.yaml==0.18  # a note",
        "x @ file:///y",
        "",
        "Trio[a]==1 ; python_version > '3'",
    ]
    assert pins(lines) == {"torch": "2.11.0", "ruamel-yaml": "0.18", "trio": "1"}
    assert there([*lines, "h11"]) == {
        "torch": "2.11.0",
        "ruamel-yaml": "0.18",
        "x": "",
        "trio": "1",
        "h11": "",
    }


def test_what_is_there_and_fits_is_not_brought(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver is uv's; here it says that numpy must be another one, and that trl and msgspec are needed."""

    def resolved(requirements: list[str], held: dict[str, str], preferred: dict[str, str]) -> dict[str, str]:
        assert held["torch"] == "2.11.0" and held["transformers"] == "5.17.0" and preferred["numpy"] == "2.5.2"
        stack = {"torch": "2.11.0", "transformers": "5.17.0", "triton": "3.6.0", "nvidia-cublas": "13"}
        return {**stack, "numpy": "2.3.5", "trl": "1.16.0", "msgspec": "0.22.0", "rich": "15", "pyyaml": "6"}

    monkeypatch.setattr(gpu_wheels, "resolved", resolved)
    present = {"torch": "2.11.0", "transformers": "5.17.0", "numpy": "2.5.2", "rich": "", "pyyaml": "6"}
    assert lacking(present) == {"numpy": "2.3.5", "trl": "1.16.0", "msgspec": "0.22.0"}
    assert lacking(present, ["MsgSpec"]) == {"numpy": "2.3.5", "trl": "1.16.0"}


def test_wheels_of_an_earlier_call_stay_behind(tmp_path: Path) -> None:
    names = [
        "msgspec-0.22.0-cp312-x.whl",
        "msgspec-0.21.0-cp312-x.whl",
        "Jinja_2-3.1-py3.whl",
        "torch-2.11.0+cu130-x.whl",
        "z3-4-py3.whl",
    ]
    for name in names:
        (tmp_path / name).touch()
    found = chosen({"msgspec": "0.22.0", "jinja-2": "3.1", "torch": "2.11.0"}, tmp_path)
    assert sorted(wheel.name for wheel in found) == sorted([names[0], names[2], names[3]])
