"""What `benchmarks.gpu` needs on a machine that reaches no registry: the wheels that it lacks, in pieces that may travel.

    python -m benchmarks.parts.gpu_wheels FOLDER [--present FILE] [--without NAME ...] [--piece-mib 56] [--list]

FOLDER gets `wheels/` and `crates/00`, `crates/01`, ...: folders of at most one piece's size each, in which large wheels are cut. On the
other machine their files are put into one folder, and `sh unpack.sh SITE`, which lies in each, puts the wheels together, looks at their
digests and installs them into SITE, for `PYTHONPATH=SITE python3 -m benchmarks.gpu`.

`--present` is what `pip freeze` says there (or bare names): what is there and goes with the rest is not brought. Without it torch, transformers, PEFT,
accelerate and what they need are taken to be there. `--list` tells and brings nothing. The machine is x86-64 with glibc 2.39 or so.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON = "3.12"
MIB = 2**20
# The engine of that torch, and what the rows import; versions as the project pins them.
TORCH, VLLM = "torch==2.11.0", "vllm==0.24.0"
PRESENT = ("transformers", "peft", "accelerate")
WANTED = (
    "bitsandbytes", "datasets", "fsspec", "jinja2", "jsonschema", "polars", "psutil", "pyarrow", "pydantic", "pyyaml", "regex", "rich",
    "scipy", "tokenizers", "trl", "typer", "xxhash",
)  # fmt: skip
# What vLLM needs for pictures, other GPUs, other architectures and types; a Llama in bfloat16 on this one imports none of it, as a walk through
# the imports of 0.24.0 shows, and it is two thirds of all bytes.
OTHER_MODELS = (
    "cuda-python", "cuda-tile", "flashinfer-cubin", "flashinfer-python", "humming-kernels", "nvidia-cuda-cccl", "nvidia-cuda-crt",
    "nvidia-cuda-nvcc", "nvidia-cuda-tileiras", "nvidia-cudnn-frontend", "nvidia-cutlass-dsl", "nvidia-cutlass-dsl-libs-base",
    "nvidia-cutlass-dsl-libs-cu13", "nvidia-nvvm", "opencv-python-headless", "quack-kernels", "tilelang", "tokenspeed-mla",
    "tokenspeed-triton", "torchaudio", "torchcodec", "torchvision", "z3-solver",
)  # fmt: skip
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)] + [
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
]
UNPACK = """#!/bin/sh
# Puts the wheels beside this file together, and installs them into the folder that is named.
set -e
[ -n "$1" ] || { echo "which folder? sh unpack.sh SITE" >&2; exit 2; }
cd "$(dirname "$0")"
for first in *.whl.000; do
  [ -e "$first" ] || continue
  wheel="${first%.000}"
  cat "$wheel".[0-9][0-9][0-9] > "$wheel"
  rm "$wheel".[0-9][0-9][0-9]
done
sha256sum --check --quiet wheels.sha256
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$1" *.whl
"""


class Unresolved(Exception):
    """The packages can't be had together; the words are the resolver's."""


@dataclass
class Crate:
    """A folder that travels at once.

    Attributes:
        files: (wheel, first byte, bytes) each.
    """

    files: list[tuple[Path, int, int]] = field(default_factory=lambda: [])

    @property
    def size(self) -> int:
        return sum(size for _, _, size in self.files)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines: Iterable[str]) -> dict[str, str]:
    """Name -> version of the lines `NAME==VERSION`; others, and local versions (`+cu130`), are left out."""
    found: dict[str, str] = {}
    for line in lines:
        name, equal, rest = line.split("#")[0].split(";")[0].strip().partition("==")
        if equal and rest:
            found[canonical(name.partition("[")[0])] = rest.strip().partition("+")[0]
    return found


def there(lines: Sequence[str]) -> dict[str, str]:
    """Name -> version of what a machine says that it has; no version where none is told."""
    names = [found[0] for line in lines if (found := re.match(r"[\w.-]*\w", line)) and not line.startswith("-")]
    return {**{canonical(name): "" for name in names}, **pins(lines)}


def resolved(requirements: Sequence[str], held: dict[str, str], preferred: dict[str, str]) -> dict[str, str]:
    """Name -> version of these packages and of all that they need, on the other machine.

    Args:
        held: versions that have to be these.
        preferred: versions that are taken where nothing speaks against them.

    Raises:
        Unresolved: there is no such set.
    """
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        raise Unresolved("`uv` is not here; `make setup` brings it.")
    with tempfile.TemporaryDirectory() as home:
        wanted, fixed, without, found = (
            Path(home) / name for name in ("wanted.txt", "held.txt", "without.txt", "found.txt")
        )
        wanted.write_text("\n".join(requirements))
        fixed.write_text("\n".join(f"{name}=={number}" for name, number in held.items()))
        without.write_text("\n".join(f'{name}; python_version < "3"' for name in OTHER_MODELS))
        found.write_text(
            "\n".join(f"{name}=={number}" for name, number in preferred.items())
        )  # uv goes on from what it finds
        done = subprocess.run(
            [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python-version", PYTHON,
             "--python-platform", "x86_64-manylinux_2_39", "--constraint", str(fixed), "--override", str(without),
             "--only-binary", ":all:", "--output-file", str(found), str(wanted)],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise Unresolved(done.stderr.strip()[-2000:])
        return pins(found.read_text().splitlines())


def lacking(present: dict[str, str], without: Iterable[str] = ()) -> dict[str, str]:
    """Name -> version of what has to be brought to a machine that has `present`: what is not there, and what is there in a version that
    does not go with it."""
    ours = pins((ROOT / "requirements" / "constraints.txt").read_text().splitlines())
    known = {name: number for name, number in present.items() if number}
    here = {name: known.get(name, ours[name]) for name in PRESENT} | pins([TORCH])
    stays = resolved([f"{name}=={number}" for name, number in here.items()], here, {**ours, **known})
    present = present or stays
    every = resolved([TORCH, VLLM, *WANTED], {**here, "trl": ours["trl"]}, {**ours, **known})
    left_out = {*pins([TORCH]), *PRESENT, *map(canonical, without)}
    left_out |= {name for name in stays if name.startswith(("nvidia-", "cuda-")) or name == "triton"}  # torch's own
    return {
        name: number for name, number in every.items() if name not in left_out and present.get(name) not in (number, "")
    }


def bring(packages: dict[str, str], folder: Path) -> list[Path]:
    """Download the wheels of these versions.

    Raises:
        Unresolved: there is no such wheel.
    """
    folder.mkdir(parents=True, exist_ok=True)
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version", PYTHON,
         "--implementation", "cp", "--abi", f"cp{PYTHON.replace('.', '')}", "--abi", "abi3", "--abi", "none", *platforms,
         "--dest", str(folder), *(f"{name}=={number}" for name, number in packages.items())],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise Unresolved(done.stderr.strip()[-2000:])
    return chosen(packages, folder)


def chosen(packages: dict[str, str], folder: Path) -> list[Path]:
    """The wheels of these versions, of all that a folder holds: an earlier call may have wanted others."""
    found: list[Path] = []
    for wheel in sorted(folder.glob("*.whl")):
        name, number, *_ = wheel.name.split("-")
        if packages.get(canonical(name)) == number.partition("+")[0]:
            found.append(wheel)
    return found


def packed(sizes: dict[Path, int], piece: int) -> list[Crate]:
    """All files in crates of at most `piece` bytes: the largest first, each into the fullest crate that still has room; what is larger
    than a crate fills some, and its rest is packed as a file."""
    full: list[Crate] = []
    rest: list[tuple[Path, int, int]] = []
    for file, size in sizes.items():
        whole = size // piece if size > piece else 0
        full += [Crate([(file, number * piece, piece)]) for number in range(whole)]
        if size > whole * piece:
            rest.append((file, whole * piece, size - whole * piece))
    open_: list[Crate] = []
    for part in sorted(rest, key=lambda part: -part[2]):
        fitting = [crate for crate in open_ if crate.size + part[2] <= piece]
        crate = max(fitting, key=lambda crate: crate.size) if fitting else Crate()
        if not fitting:
            open_.append(crate)
        crate.files.append(part)
    return full + open_


def pack(wheels: Sequence[Path], folder: Path, piece: int) -> list[Path]:
    """Write the crates. A wheel that is cut has its parts under its name and their number."""
    shutil.rmtree(folder, ignore_errors=True)
    sums = "".join(f"{hashlib.file_digest(wheel.open('rb'), 'sha256').hexdigest()}  {wheel.name}\n" for wheel in wheels)
    crates = packed({wheel: wheel.stat().st_size for wheel in wheels}, piece)
    for number, crate in enumerate(crates):
        own = folder / f"{number:02d}"
        own.mkdir(parents=True)
        (own / "unpack.sh").write_text(UNPACK)
        (own / "wheels.sha256").write_text(sums)
        for wheel, first, size in crate.files:
            with wheel.open("rb") as source:
                source.seek(first)
                cut = size < wheel.stat().st_size
                name = f"{wheel.name}.{first // piece:03d}" if cut else wheel.name
                (own / name).write_bytes(source.read(size))
    return [folder / f"{number:02d}" for number in range(len(crates))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--present", type=Path, help="what `pip freeze` says on that machine")
    parser.add_argument("--without", nargs="*", default=[], help="names that are not to be brought")
    parser.add_argument("--piece-mib", type=int, default=56, help="that travel at once")
    parser.add_argument("--list", action="store_true", help="tell what would be brought")
    given = parser.parse_args()
    try:
        missing = lacking(there(given.present.read_text().splitlines()) if given.present else {}, given.without)
        print("\n".join(f"{name}=={number}" for name, number in missing.items()))
        if given.list:
            return
        wheels = bring(missing, given.folder / "wheels")
    except Unresolved as error:
        raise SystemExit(str(error)) from None
    crates = pack(wheels, given.folder / "crates", given.piece_mib * MIB)
    for crate in crates:
        print(f"{crate}: {sum(file.stat().st_size for file in crate.iterdir()) / MIB:.1f} MiB")
    print(f"{len(wheels)} wheels, {sum(wheel.stat().st_size for wheel in wheels) / MIB:.0f} MiB, {len(crates)} crates")


if __name__ == "__main__":
    main()
