"""Nodes that are killed, or stand still and come back, at drawn moments of a curation recipe: the digests are those of a quiet run.

python -m benchmarks.parts.ray_kills [ROUNDS] [SEED]
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.parts.ray_nodes import HASTE, add_node, command, ray_cluster, store_digests
from engine.store.store import Store

RECIPE = """\
name: killed
seed: 7
stages:
  texts: {{kind: read, paths: ["{folder}/*.jsonl"]}}
  clean: {{kind: filter, from: texts, min_words: 5}}
  unique: {{kind: dedup, from: clean, threshold: 0.8}}
  shards: {{kind: tokenize, from: unique, vocab_size: 600, block: 256}}
"""
DOCUMENTS, FILES = 36_000, 6
HARMS = ("node killed", "node killed", "worker killed", "node stands still")
PATIENCE_S = 600


def rounds(count: int, seed: int = 0, documents: int = DOCUMENTS) -> Iterator[dict[str, Any]]:
    """For each round what was done and at what the run was then (`phase`), whether it ended in the same digests with every row there
    once (`same`), and what was wrong (`problem`, None if nothing).
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _write(folder / "texts", documents)
        (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder / "texts"))
        quiet = command(folder / "recipe.yaml", folder / "quiet", None)
        said = quiet.communicate()[0]
        if quiet.returncode:
            raise RuntimeError(said[-2000:])
        truth = store_digests(folder / "quiet")
        with ray_cluster(3, head_cpus=0, _system_config=HASTE) as cluster:
            began = time.monotonic()
            running = command(folder / "recipe.yaml", folder / "undisturbed", cluster.address)
            said = running.communicate()[0]
            length = time.monotonic() - began
            if running.returncode or store_digests(folder / "undisturbed") != truth:
                raise RuntimeError(f"without any harm: {said[-2000:]}")
            for _ in range(count):
                harm, moment = rng.choice(HARMS), rng.uniform(0.1, 0.95) * length
                yield _round(cluster, folder, truth, harm, moment)
                shutil.rmtree(folder / "store", ignore_errors=True)


def _round(cluster: Any, folder: Path, truth: dict[str, str], harm: str, moment: float) -> dict[str, Any]:
    store = folder / "store"
    running = command(folder / "recipe.yaml", store, cluster.address, log=folder / "log")
    node = sorted(cluster.worker_nodes, key=lambda one: one.unique_id)[0]
    raylet = _raylet(node)
    problem: str | None = None
    stopped: list[psutil.Process] = []
    with contextlib.suppress(Exception):
        running.wait(moment)
    phase = f"{harm} in {_phase(store)}"
    if running.poll() is not None:
        phase = f"{harm} after the end"
    match harm:
        case "node killed":
            cluster.remove_node(node, allow_graceful=False)
        case "worker killed":
            for one in [child for child in raylet.children() if "ray::" in " ".join(child.cmdline())]:
                one.kill()
        case _:
            stopped = [raylet, *raylet.children(recursive=True)]
            for one in stopped:
                one.suspend()
    if harm == "node killed":
        add_node(cluster)
    try:
        code = running.wait(PATIENCE_S)
    except Exception:
        running.kill()
        return {"phase": phase, "same": False, "problem": f"not done in {PATIENCE_S} s"}
    if code:
        problem = (folder / "log").read_text()[-1500:]
    problem = problem or _wrong(store, truth)
    if stopped:
        before = _files(store)
        for one in reversed(
            stopped
        ):  # workers first: they go on for a while, before their node learns that it is thought dead
            with contextlib.suppress(psutil.Error):
                one.resume()
        psutil.wait_procs(stopped, timeout=60)
        problem = problem or (None if _files(store) == before else "who came back changed the store")
        cluster.remove_node(node, allow_graceful=False)
        add_node(cluster)
    return {"phase": phase, "same": problem is None, "problem": problem}


def _write(folder: Path, count: int) -> None:
    """Documents of which every fourth is a near-duplicate of the one before it, and every ninth a copy."""
    rng = random.Random(5)
    words = ["".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(3, 9))) for _ in range(3000)]
    folder.mkdir()
    texts: list[list[str]] = []
    for number in range(count):
        if number % 9 == 8:
            texts.append(texts[-8])
        elif number % 4 == 3:
            edited = list(texts[-1])
            edited[rng.randrange(len(edited))] = rng.choice(words)
            texts.append(edited)
        else:
            texts.append(rng.choices(words, k=rng.randint(2, 60)))
    for file in range(FILES):
        lines = (json.dumps({"text": " ".join(text)}) for text in texts[file::FILES])
        (folder / f"{file}.jsonl").write_text("\n".join(lines))


def _phase(store: Path) -> str:
    """Which stage is under way, and the last folder of its exchange that was written to."""
    found = [folder for folder in (store / "work").glob("*-*") if folder.is_dir()]
    if not found:
        return "between stages"
    stage = max(found, key=lambda one: one.stat().st_mtime_ns)
    with contextlib.suppress(OSError, ValueError):
        last = max((one for one in stage.iterdir() if one.is_dir()), key=lambda one: one.stat().st_mtime_ns)
        return f"{stage.name.partition('-')[0]}, {last.name}"
    return stage.name.partition("-")[0]


def _wrong(store: Path, truth: dict[str, str]) -> str | None:
    """What is not as in a quiet run, in words."""
    found = store_digests(store)
    if found != truth:
        return f"other digests: {sorted(name for name in truth if found.get(name) != truth[name])}"
    opened = Store(str(store))
    for artifact in opened.artifacts():
        if artifact.manifest["stage"]["kind"] not in ("filter", "dedup"):
            continue
        ids = Counter(artifact.to_table(["id"]).column("id").to_pylist())
        if ids and max(ids.values()) > 1:
            return f"{artifact.id}: rows that are there twice"
        (given,) = [opened.get(one["artifact"]) for one in artifact.manifest["inputs"]["documents"]]
        rejected = artifact.rejected()
        if given is None or given.rows != artifact.rows + (len(rejected) if rejected is not None else 0):
            return f"{artifact.id}: rows in are not rows kept and rejected"
    return None


def _files(store: Path) -> dict[str, tuple[int, int]]:
    return {str(f): (f.stat().st_ino, f.stat().st_mtime_ns) for f in store.rglob("*") if f.is_file()}


def _raylet(node: Any) -> psutil.Process:
    (started,) = node.all_processes["raylet"]
    return psutil.Process(started.process.pid)


if __name__ == "__main__":
    for told in rounds(int((sys.argv[1:] or ["30"])[0]), int((sys.argv[2:] or ["0"])[0])):
        print(json.dumps(told), flush=True)
