"""Curation against its peers: the same files, one run, one JSON object.

    python -m benchmarks.curation --json [--quick] [--megabytes 550] [--peers datasketch,rensa,gaoya] [--keep FOLDER]

Two corpora are built from the text of the packages that are installed here: `real`, files as they are, and `planted`,
paragraph-made documents with edited copies whose exact Jaccard similarity (word 5-grams) is known. Each tool runs in a
process of its own, whose CPU time (user and system, children included) and peak resident memory the kernel counts. The
peers live in an environment of their own (`--peer-env`), made on first use.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.shingles import jaccard

ROOT = Path(__file__).parents[1]
PEERS = {"datasketch": "datasketch>=2,<3", "rensa": "rensa", "gaoya": "gaoya"}
SUFFIXES = (".py", ".pyi", ".md", ".rst", ".txt", ".html", ".json", ".h", ".hpp", ".js", ".css", ".c", ".cpp", ".yaml")
THRESHOLD = 0.8


# -- corpora -----------------------------------------------------------------------------------------------------------


def installed_texts(limit: int) -> list[str]:
    """Text files of the standard library and the installed packages, in order of their paths, up to so many bytes."""
    texts: list[str] = []
    size = 0
    for root in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")):
        for file in sorted(Path(root).rglob("*")):
            if file.suffix not in SUFFIXES or not file.is_file() or file.stat().st_size < 100:
                continue
            try:
                text = file.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue
            if "\0" in text:
                continue
            texts.append(text)
            size += len(text.encode())
            if size >= limit:
                return texts
    return texts


def planted(texts: list[str], distinct: int, copies: int) -> tuple[list[str], list[int]]:
    """Documents of 100-300 words and edited copies of some; returns them with the number of each one's original (or -1)."""
    rng = random.Random(0)
    words = [word for text in texts[:: max(len(texts) // 2000, 1)] for word in text.split()][: 200 * distinct + 1000]
    made: list[str] = []
    origin: list[int] = []
    at = 0
    for _ in range(distinct):
        size = rng.randint(100, 300)
        at = (at + size) % max(len(words) - 400, 1)
        document = words[at : at + size]
        rng.shuffle(document)  # so that documents are unlike each other, whatever they were cut from
        made.append(" ".join(document))
        origin.append(-1)
    for _ in range(copies):
        source = rng.randrange(distinct)
        copy = made[source].split(" ")
        for _ in range(rng.randint(0, max(len(copy) // 12, 1))):
            if rng.random() < 0.7:
                copy[rng.randrange(len(copy))] = rng.choice(words)
            else:
                spot = rng.randrange(len(copy))
                copy[spot : spot + 1] = [rng.choice(words) for _ in range(rng.randint(0, 3))]
        made.append(" ".join(copy))
        origin.append(source)
    return made, origin


def write(texts: list[str], file: Path) -> None:
    ids = [f"{i}" for i in range(len(texts))]
    pq.write_table(pa.table({"id": ids, "text": texts}), file, compression="zstd", row_group_size=10_000)


# -- measuring ---------------------------------------------------------------------------------------------------------


def measured(command: list[str], env: dict[str, str] | None = None) -> dict[str, float]:
    """Run a command to its end: CPU seconds and peak memory of it and its children.

    Raises:
        RuntimeError: it failed.
    """
    # A child starts with its parent's peak memory in its books, so a small process stands between.
    between = (
        "import json, resource, subprocess, sys\n"
        "code = subprocess.call(sys.argv[2:])\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "open(sys.argv[1], 'w').write(json.dumps([code, used.ru_utime + used.ru_stime, used.ru_maxrss]))"
    )
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as home, (Path(home) / "log").open("w+") as log:
        books = Path(home) / "usage.json"
        subprocess.run(
            [sys.executable, "-c", between, str(books), *command],
            env={**os.environ, **(env or {})}, cwd=ROOT, stdout=log, stderr=log, check=True,
        )  # fmt: skip
        code, cpu, peak = json.loads(books.read_text())
        if code:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{log.read()[-2000:]}")
    return {"cpu_s": round(cpu, 2), "wall_s": round(time.monotonic() - started, 2), "peak_rss_mb": round(peak / 1024)}


def judge(removed: list[tuple[int, int]], texts: list[str], origin: list[int]) -> dict[str, float]:
    """Recall and precision by exact Jaccard.

    Recall is over copies that are at the threshold or above it with their original: the share that was removed.
    Precision is the share of removals that are at the threshold with the very row named as kept.
    """
    due = {i for i, o in enumerate(origin) if o >= 0 and jaccard(texts[i], texts[o], 5) >= THRESHOLD}
    # Either of a pair may be the one that goes.
    gone = {i for i, _ in removed}
    found = sum(i in gone or origin[i] in gone for i in due)
    right = sum(jaccard(texts[i], texts[k], 5) >= THRESHOLD for i, k in removed)
    return {
        "due": len(due),
        "removed": len(removed),
        "recall": round(found / max(len(due), 1), 4),
        "precision": round(right / max(len(removed), 1), 4),
    }


def ours(part: str, source: Path, folder: Path) -> dict[str, Any]:
    """Run one part of ours in a process of its own; what it says of itself is merged in."""
    out = folder / f"{part}-{source.stem}.json"
    usage = measured([sys.executable, "-m", "benchmarks.curation", "--part", part, str(source), str(out)])
    return {**usage, **json.loads(out.read_text())}


def run_part(part: str, source: Path, out: Path) -> None:
    """The process that `ours` measures."""
    table_rows = pq.read_metadata(source).num_rows
    said: dict[str, Any] = {"documents": table_rows}
    if part == "dedup":
        from engine.store import Store
        from engine.worker import carry_out
        from pipelines.dedup import Dedup
        from pipelines.read import Read

        with tempfile.TemporaryDirectory(dir=out.parent) as home:
            store = Store(home)
            read = carry_out(store, "read", Read.model_validate({"paths": [str(source)], "max_bytes": 1 << 30}), {})
            before = time.process_time()
            done = carry_out(store, "dedup", Dedup.model_validate({"threshold": THRESHOLD}), {"documents": {"d": read}})
            said["job_cpu_s"] = round(time.process_time() - before, 2)
            place = dict(
                zip(
                    read.to_table(["id"])["id"].to_pylist(),
                    read.to_table(["offset"])["offset"].to_pylist(),
                    strict=True,
                )
            )
            rejected = done.rejected()
            rows: list[dict[str, Any]] = [] if rejected is None else rejected.to_pylist()
            said["removed"] = [(place[r["id"]], place[r["kept_id"]]) for r in rows]
            said["summary"] = {k: v for k, v in done.manifest["summary"].items() if k != "curve"}
    else:
        column = pq.read_table(source, columns=["text"]).column("text").combine_chunks()
        megabytes = column.nbytes / 1e6
        said["cpu_per"] = _kernel(part, column)
        said["mb_per_s_core"] = round(megabytes / said["cpu_per"], 1)
    out.write_text(json.dumps(said))


def _kernel(part: str, column: pa.Array) -> float:
    """CPU seconds for the whole column, compiled code warm."""
    from pipelines.shingles import texts_of

    def cpu(run: Any) -> float:
        before = time.process_time()
        run()
        return time.process_time() - before

    texts = texts_of(column)
    if part == "signatures":
        from pipelines.minhash import Banding, permutations, sign_texts

        banding = Banding(14, 8)
        a, b = permutations(banding.permutations)
        sign_texts(texts_of(column.slice(0, 1)), 5, banding, a, b)
        return cpu(lambda: sign_texts(texts, 5, banding, a, b))
    if part == "statistics":
        from pipelines.statistics import measure

        measure(column.slice(0, 1))
        return cpu(lambda: measure(column))
    from pipelines.pretokens import PretokenCache
    from pipelines.tokenize import train_bpe

    strings: list[str] = column.to_pylist()
    tokenizer = train_bpe(iter([strings[:: max(len(strings) // 500, 1)]]), 32_000)
    tokenizer.encode_special_tokens = True

    def encode(batch: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]

    PretokenCache(encode).encode(texts_of(column.slice(0, 1)))
    if part == "tokenize":
        return cpu(lambda: PretokenCache(encode).encode(texts))
    batches = [strings[i : i + 500] for i in range(0, len(strings), 500)]
    return cpu(lambda: [encode(batch) for batch in batches])


def shards(folder: Path) -> dict[str, float]:
    """Million tokens a second a core out of memory-mapped shards, into a reused buffer of 64-bit ids."""
    from pipelines.shards import Shards, write_shard

    rng = np.random.default_rng(0)
    blocks, block = 4096, 1024
    for i in range(4):
        tokens = rng.integers(0, 32_000, (blocks, block)).astype(np.uint16)
        write_shard(folder / "shards" / "data" / f"{i:05d}.arrow", ["x"] * blocks, [[]] * blocks, tokens, [[]] * blocks)
    made = Shards(folder / "shards")
    out = np.empty((64, block), np.int64)

    def sequential() -> None:
        for view in made.batches(64):
            out[: len(view)] = view

    order = rng.permutation(len(made))

    def at_random() -> None:
        for i in range(0, len(order), 64):
            made.tokens_BT(order[i : i + 64], out[: len(order[i : i + 64])])

    rates: dict[str, float] = {}
    for name, run in (("sequential", sequential), ("random", at_random)):
        run()
        before = time.process_time()
        run()
        rates[f"{name}_mtokens_per_s_core"] = round(len(made) * block / 1e6 / (time.process_time() - before))
    return rates


def peer_python(home: Path, wanted: list[str]) -> str:
    """The interpreter of the peers' own environment, made and filled if need be."""
    python = home / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, stdout=sys.stderr)
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    pip = [uv, "pip", "install", "--python", str(python)] if uv else [str(python), "-m", "pip", "install"]
    subprocess.run([*pip, "-q", "pyarrow", *(PEERS[name] for name in wanted)], check=True, stdout=sys.stderr)
    return str(python)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--quick", action="store_true", help="small corpora: does it run, not how fast")
    parser.add_argument("--megabytes", type=int, default=550)
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated; empty for none")
    parser.add_argument("--peer-env", type=Path, default=Path(tempfile.gettempdir()) / "flywheel-peers")
    parser.add_argument("--keep", type=Path, help="leave the corpora in this folder")
    parser.add_argument("--part", nargs=3, metavar=("PART", "SOURCE", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        run_part(given.part[0], Path(given.part[1]), Path(given.part[2]))
        return
    folder = given.keep or Path(tempfile.mkdtemp(prefix="flywheel-curation-"))
    folder.mkdir(parents=True, exist_ok=True)
    texts = installed_texts((20 if given.quick else given.megabytes) * 1_000_000)
    made, origin = planted(texts, *((2_000, 1_600) if given.quick else (50_000, 40_000)))
    files = {"real": folder / "real.parquet", "planted": folder / "planted.parquet"}
    write(texts, files["real"])
    write(made, files["planted"])
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version(),
        "threshold": THRESHOLD,
        "corpora": {
            name: {"documents": len(t), "megabytes": round(sum(len(x.encode()) for x in t) / 1e6, 1)}
            for name, t in (("real", texts), ("planted", made))
        },
        "kernels": {part: ours(part, files["real"], folder)["mb_per_s_core"]
                    for part in ("signatures", "statistics", "tokenize", "encode_batch_fast")},
        "shards": shards(folder),
        "dedup": {},
    }  # fmt: skip
    ours("dedup", files["planted"], folder)  # compile once, uncounted
    for name, file in files.items():
        got = ours("dedup", file, folder)
        removed = got.pop("removed")
        verdict = judge(removed, made, origin) if name == "planted" else {"removed": len(removed)}
        result["dedup"].setdefault("flywheel", {})[name] = {**got, **verdict}
    wanted = [peer for peer in given.peers.split(",") if peer]
    if wanted:
        python = peer_python(given.peer_env, wanted)
        for peer in wanted:
            for name, file in files.items():
                out = folder / f"{peer}-{name}.json"
                script = str(ROOT / "benchmarks" / "peers" / "dedup.py")
                try:
                    usage = measured([python, script, peer, str(file), str(out), str(THRESHOLD)])
                except RuntimeError as error:
                    result["dedup"].setdefault(peer, {})[name] = {"failed": str(error)[-400:]}
                    continue
                got = json.loads(out.read_text())
                verdict = judge(got["removed"], made, origin) if name == "planted" else {"removed": len(got["removed"])}
                result["dedup"].setdefault(peer, {})[name] = {**usage, **verdict, "version": got["version"]}
    if not given.keep:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result, indent=None if given.json else 1))


if __name__ == "__main__":
    main()
