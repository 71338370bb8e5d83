"""A finished toy run whose manifests and record are sealed, and stages that are made again in this process."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import engine.upkeep.repair
from engine.cli import main
from engine.execution.worker import carry_out
from engine.plan.plan import Planned, make_plan
from engine.plan.recipe import load_recipe
from engine.store.artifact import Artifact
from engine.store.digest import digest_file
from engine.store.lease import Lease
from engine.store.sealed_json import sealed
from engine.store.store import Store
from tests.engine.conftest import RECIPE, TOY


def carry_out_planned(where: Store, stage: Planned, base: Path) -> Artifact:
    """What a worker does, here: one takes seconds to start."""
    inputs: dict[str, dict[str, Artifact]] = {}
    for port, given in stage.inputs.items():
        inputs[port] = {}
        for label, source in given:
            artifact = where.get(source.folder)
            assert artifact
            inputs[port][label] = artifact
    return carry_out(where, stage.step.kind, stage.step.config, inputs, str(base), identity=stage.identity)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy recipe, carried out in this process, in `store`, whose manifests and record are sealed."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "lines.txt").write_text("\n".join(f"line {i}" for i in range(23)))
    (folder / "toy.yaml").write_text(RECIPE)
    store = Store(str(folder / "store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOY))
        stages: dict[str, Any] = {}
        for stage in make_plan(load_recipe(folder / "toy.yaml"), store):
            artifact = carry_out_planned(store, stage, folder)
            beside = {
                name: {"bytes": (file := at(artifact) / name).stat().st_size, "sha256": digest_file(file)}
                for name in ("README.md", "logs/metrics.parquet")
                if (at(artifact) / name).exists()
            }
            store.put(sealed({**artifact.manifest, "beside": beside}), "artifacts", artifact.id, "manifest.json")
            inputs = {port: [[label, s.folder] for label, s in given] for port, given in stage.inputs.items()}
            entry = {"artifact": stage.folder, "kind": stage.step.kind, "identity": stage.identity, "inputs": inputs}
            stages[stage.name] = entry
        store.put(sealed({"recipe": "toy.yaml", "stages": stages}), "runs", "toy.json")
    return folder


@pytest.fixture
def kept(made: Path, tmp_path: Path) -> Store:
    """A store of its own that holds the toy run, and the recipe beside it."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    store = Store(str(tmp_path / "store"))
    for artifact in store.artifacts():
        change_manifest(store, artifact.id, base=str(tmp_path))
    return store


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the artifacts that were made again, in this process."""
    again: list[str] = []

    def make(where: Store, stage: Planned, held: Lease, base: Path, view: Any = None) -> Artifact:
        again.append(stage.folder)
        return carry_out_planned(where, stage, base)

    monkeypatch.setattr(engine.upkeep.repair, "make", make)
    return again


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line in this process: a new one takes a second to start."""

    def call(*arguments: Any) -> Said:
        monkeypatch.setenv("FLYWHEEL_STORE", str(tmp_path / "store"))
        monkeypatch.setattr(sys, "argv", ["flywheel", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        told = capsys.readouterr()
        return Said(code, told.out, told.err)

    return call


def at(artifact: Artifact) -> Path:
    """Where its files are, whatever was done to them."""
    return Path(artifact.store.path("artifacts", artifact.id))


def flip(file: Path, bit: int | None = None) -> None:
    data = bytearray(file.read_bytes())
    bit = len(data) * 4 if bit is None else bit
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def change_manifest(store: Store, folder: str, **fields: Any) -> None:
    """Other contents, under a seal that fits."""
    artifact = store.get(folder)
    assert artifact
    store.put(sealed({**artifact.manifest, **fields}), "artifacts", folder, "manifest.json")


def digests(store: Store) -> dict[str, str]:
    return {artifact.id: artifact.digest for artifact in store.artifacts()}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that counts, by name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "logs" not in path.parts and path.name not in ("manifest.json", "README.md")
    }
