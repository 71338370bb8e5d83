"""Curation against its peers: the same files, one run, one JSON object.

    python -m benchmarks.curation --json [--quick] [--only tokenizing] [--megabytes 550] [--peers datasketch,rensa,gaoya] [--keep FOLDER]

Two corpora are built from the text of the packages that are installed here: `real`, files as they are, and `planted`,
paragraph-made documents with edited copies whose exact Jaccard similarity (word 5-grams) is known. Each tool runs in a
process of its own, whose CPU time (user and system, children included) and peak resident memory the kernel counts. The
peers live in an environment of their own (`--peer-env`), made on first use.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.parts import tokenizing
from benchmarks.parts.near_duplicates import THRESHOLD, Judge, installed_texts, planted, write
from engine.store.parquet import UNLIKE
from engine.text.normal_form import normal_form
from engine.text.words import words
from pipelines.texts.columns import Texts, texts_of
from pipelines.texts.shingles import jaccard

ROOT = Path(__file__).parents[1]
# What each is installed as, and how many times less CPU ours should need.
PEERS = {
    "datasketch": ("datasketch>=2,<3", 20),
    "rensa": ("rensa", 6),
    "gaoya": ("gaoya", 6),
    "daft": ("daft", 3),
    "datatrove": ("datatrove spacy orjson loguru xxhash<4 regex nltk fasteners rich tokenizers", 100),
}
SLOW = ("datatrove",)  # measured on a part of the planted corpus; ours on the same part


# -- measuring ---------------------------------------------------------------------------------------------------------


def measured(command: list[str], env: dict[str, str] | None = None) -> dict[str, float]:
    """Run a command to its end: CPU seconds and peak memory of it and its children.

    Raises:
        RuntimeError: it failed.
    """
    # Byte code is compiled once, as it is for whoever has installed a tool, whatever this environment says.
    given = {name: value for name, value in {**os.environ, **(env or {})}.items() if name != "PYTHONDONTWRITEBYTECODE"}
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
            env=given, cwd=ROOT, stdout=log, stderr=log, check=True,
        )  # fmt: skip
        code, cpu, peak = json.loads(books.read_text())
        if code:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{log.read()[-2000:]}")
    return {"cpu_s": round(cpu, 2), "wall_s": round(time.monotonic() - started, 2), "peak_rss_mb": round(peak / 1024)}


def ours(part: str, source: Path, folder: Path, *options: str) -> dict[str, Any]:
    """Run one part of ours in a process of its own; what it says of itself is merged in."""
    out = folder / f"{part}-{source.stem}.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.curation",
        "--part",
        part,
        str(source),
        str(out),
        "--options",
        *options,
    ]
    usage = measured(command)
    return {**usage, **json.loads(out.read_text())}


def documents(source: Path, folder: Path) -> str:
    """Make an artifact of documents of a Parquet file with `id` and `text`; its name in the store `folder`."""
    from engine.execution.worker import carry_out
    from engine.stage.job import Job
    from engine.stage.stage import Stage
    from engine.store.store import Store

    class Given(Stage):
        name: str

        def run(self, job: Job) -> None:
            with pq.ParquetFile(source) as file:
                for i, batch in enumerate(file.iter_batches(10_000)):
                    job.commit(f"{i:06d}", pa.Table.from_batches([batch]))

    return carry_out(Store(str(folder)), "given", Given.model_validate({"name": source.stem}), {}).id


def run_part(part: str, source: Path, out: Path, options: list[str]) -> None:
    """The process that `ours` measures."""
    said: dict[str, Any] = {}
    if part == "documents":
        said["artifact"] = documents(source, out.parent / "store")
    elif part == "dedup":
        said |= _dedup(options[0], out.parent, json.loads(options[1]))
    elif part == "checks":
        said |= _checks(options[0], out.parent)
    else:
        column = pq.read_table(source, columns=["text"]).column("text").combine_chunks()
        if options:  # no more than so many megabytes of it
            ends = np.cumsum(np.diff(texts_of(column).offsets))
            column = column.slice(0, int(np.searchsorted(ends, int(options[0]) * 1_000_000)))
        megabytes = column.nbytes / 1e6
        said["cpu_per"] = _kernel(part, column, out.parent)
        said["mb_per_s_core"] = round(megabytes / said["cpu_per"], 1)
    out.write_text(json.dumps(said))


def _dedup(artifact: str, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The whole stage: signatures, verification, kept and removed rows written."""
    from engine.execution.worker import carry_out
    from engine.store.store import Store
    from pipelines.dedup import signatures
    from pipelines.dedup.minhash import Banding, permutations
    from pipelines.dedup.stage import Dedup
    from pipelines.texts.columns import strings

    store = Store(str(folder / "store"))
    given = store.get(artifact)
    assert given is not None
    signing = [0.0, 0.0]
    sign_texts = signatures.sign_texts

    def timed(texts: Texts, *rest: Any) -> Any:
        before = time.thread_time()
        made = sign_texts(texts, *rest)
        signing[0] += time.thread_time() - before
        signing[1] += float(texts.offsets[-1] - texts.offsets[0]) / 1e6
        return made

    # Loading compiled code is start-up; it counts in the job's CPU seconds and is told apart here.
    before = time.process_time()
    some, banding = texts_of(strings(["a b"])), Banding(1, 1)
    sign_texts(some, 5, banding, *permutations(1))
    load = time.process_time() - before
    signatures.sign_texts = timed
    done = carry_out(store, "dedup", Dedup.model_validate(config), {"documents": {"d": given}})
    return {
        "artifact": done.id,
        "job_cpu_s": round(time.process_time() - before, 2),
        "kernel_load_cpu_s": round(load, 2),
        "signatures_mb_per_s_core": round(signing[1] / max(signing[0], 1e-9)),
        "summary": {k: v for k, v in done.manifest["summary"].items() if k != "curve"},
        "rows": done.rows,
    }


def _checks(artifact: str, folder: Path) -> dict[str, float]:
    """CPU seconds to write and to read all rows of an artifact, with the digests and page checksums that tell damage and without; the
    least of five rounds each. Nothing is known of the files at first, as in a run that reads what another has made.
    """
    from engine.store.known_digests import shared_digests
    from engine.store.parquet import encode
    from engine.store.store import Store

    made = Store(str(folder / "store")).get(artifact)
    assert made is not None
    tables = [made.read_table(name) for name in made.parts()]

    def read() -> None:
        with shared_digests():
            for _ in made.batches():
                pass

    def read_unchecked() -> None:
        for name in made.parts():
            with pq.ParquetFile(made.place / name, pre_buffer=False) as file:
                for _ in file.iter_batches(10_000, use_threads=False):
                    pass

    def write_unchecked() -> None:
        for table in tables:
            sink = io.BytesIO()
            columns: Any = [name for name in table.column_names if name not in UNLIKE]
            pq.write_table(table, sink, compression="zstd", compression_level=1, use_dictionary=columns)
            hashlib.sha256(sink.getvalue())  # a part's digest was worked out before there were checksums, twice
            hashlib.sha256(sink.getvalue())

    def written() -> None:
        for table in tables:
            hashlib.sha256(encode(table))

    work = {"read": read, "read_unchecked": read_unchecked, "write": written, "write_unchecked": write_unchecked}
    least = dict.fromkeys(work, float("inf"))
    for _ in range(5):
        for name, do in work.items():
            before = time.process_time()
            do()
            least[name] = min(least[name], time.process_time() - before)
    return {f"{name}_cpu_s": round(seconds, 4) for name, seconds in least.items()}


def removals(artifact: str, folder: Path) -> list[dict[str, Any]]:
    from engine.store.store import Store

    done = Store(str(folder / "store")).get(artifact)
    table = done.rejected() if done else None
    return [] if table is None else table.select(["id", "text", "kept_id", "jaccard"]).to_pylist()


def _kernel(part: str, column: pa.Array, folder: Path) -> float:
    """CPU seconds for the whole column, compiled code warm."""

    def cpu(run: Any) -> float:
        before = time.process_time()
        run()
        return time.process_time() - before

    texts = texts_of(column)
    if part == "signatures":
        from pipelines.dedup.minhash import Banding, permutations, sign_texts

        banding = Banding(14, 8)
        a, b = permutations(banding.permutations)
        sign_texts(texts_of(column.slice(0, 1)), 5, banding, a, b)
        return cpu(lambda: sign_texts(texts, 5, banding, a, b))
    if part == "statistics":
        from pipelines.filter.statistics import measure

        measure(column.slice(0, 1))
        return cpu(lambda: measure(column))
    from pipelines.tokenize.bpe import train_bpe
    from pipelines.tokenize.tokenizer_files import save

    strings: list[str] = column.to_pylist()
    tokenizer = train_bpe(iter([strings[:: max(len(strings) // 500, 1)]]), 32_000)
    if part == "tokenize":
        save(tokenizer, folder / "tokenizer")
        packed: Any = [_packed(some, folder) for some in (strings[:10], strings)]
        packed[0]()  # imports transformers and compiles
        return cpu(packed[1])
    tokenizer.encode_special_tokens = True
    batches = [strings[i : i + 500] for i in range(0, len(strings), 500)]
    return cpu(lambda: [tokenizer.encode_batch_fast(batch, add_special_tokens=False) for batch in batches])


def _packed(texts: list[str], folder: Path) -> Callable[[], Any]:
    """The whole stage `tokenize` on these texts: reads them, encodes, packs and writes shards of blocks of 1,024."""
    from engine.execution.worker import carry_out
    from engine.store.store import Store
    from pipelines.tokenize.stage import Tokenize

    file = folder / f"tokenize-{len(texts)}.parquet"
    write(texts, file)
    store = Store(str(folder / "store"))
    given = store.get(documents(file, folder / "store"))
    assert given is not None
    config = Tokenize.model_validate({"tokenizer": str(folder / "tokenizer"), "block": 1024})
    return lambda: carry_out(store, "tokenize", config, {"documents": {"d": given}})


def shards(folder: Path) -> dict[str, float]:
    """Million tokens a second a core out of memory-mapped shards, as pretraining reads them: batches of 64-bit ids, in order
    as for validation, and at random in the order of training."""
    from pipelines.tokenize.shards import Shards, block_order, write_shard

    rng = np.random.default_rng(0)
    blocks, block = 4096, 1024
    for i in range(4):
        tokens = rng.integers(0, 32_000, (blocks, block)).astype(np.uint16)
        write_shard(folder / "shards" / "data" / f"{i:05d}.arrow", ["x"] * blocks, [[]] * blocks, tokens, [[]] * blocks)
    made = Shards(folder / "shards")
    orders = {"sequential": range(len(made)), "random": block_order(0, 0, len(made), len(made))}
    rates: dict[str, float] = {}
    for name, order in orders.items():
        batches = [order[i : i + 64] for i in range(0, len(made), 64)]
        for batch in batches:
            made.tokens_BT(batch)
        before = time.process_time()
        for batch in batches:
            made.tokens_BT(batch)
        rates[f"{name}_mtokens_per_s_core"] = round(len(made) * block / 1e6 / (time.process_time() - before))
    return rates


# -- what is shown -----------------------------------------------------------------------------------------------------


def alpaca(folder: Path) -> dict[str, Any]:
    """Real answers of many models, deduplicated; every removal recomputed from the text in plain Python."""
    home = Path(os.environ.get("FLYWHEEL_DATA") or ROOT.parent / "shared" / "data")
    source = home / "alpaca_eval" / "outputs.parquet"
    if not source.exists():
        return {"skipped": f"{source} is not there"}
    table = pq.read_table(source)
    name = next(n for n in ("output", "text", "completion", "answer") if n in table.column_names)
    texts: list[str] = [text or "" for text in table.column(name).to_pylist()]
    file = folder / "alpaca.parquet"
    write(texts, file)
    made = ours("documents", file, folder)
    done = ours("dedup", file, folder, made["artifact"], json.dumps({"threshold": THRESHOLD}))
    rows = removals(done["artifact"], folder)

    def holds(row: dict[str, Any]) -> bool:
        kept = texts[int(row["kept_id"])]
        if not words(row["text"]):
            return normal_form(row["text"]).split() == normal_form(kept).split()
        value = 1.0 if words(row["text"]) == words(kept) else jaccard(row["text"], kept, 5)
        return value >= THRESHOLD and abs(value - row["jaccard"]) < 1e-9

    return {"rows": len(texts), "removed": len(rows), "cpu_s": done["cpu_s"], "hold": sum(map(holds, rows))}


def bad_input(folder: Path, quick: bool) -> dict[str, Any]:
    """Documents that are many, alike or huge: what it costs, and whether all of them are accounted for."""
    rng = np.random.default_rng(0)
    many = 100_000 if quick else 10_000_000
    cases = {
        "one_word": [f"w{i}" for i in rng.integers(0, many // 4, many).tolist()],
        "one_word_half": [f"w{i}" for i in rng.integers(0, many // 8, many // 2).tolist()],  # half of each kind
        "identical": ["the same text in all of these documents, every one of them"] * 100_000,
        "huge": [" ".join(f"w{i}" for i in rng.integers(0, 10**6, 3_000_000 if quick else 28_000_000).tolist()), "a b"],
    }
    found: dict[str, Any] = {}
    for name, texts in cases.items():
        file = folder / f"{name}.parquet"
        write(texts, file)
        count = len(texts)
        cases[name] = []
        artifact = ours("documents", file, folder)["artifact"]
        done = ours("dedup", file, folder, artifact, json.dumps({"threshold": THRESHOLD}))
        summary = done["summary"]
        lost = count - summary["kept"] - summary["exact"] - summary["near"]
        found[name] = {k: done[k] for k in ("cpu_s", "job_cpu_s", "peak_rss_mb", "rows")} | {"lost": lost}
        file.unlink()
    return found


def growth(real: list[str], folder: Path) -> dict[str, Any]:
    """0.1, 1 and 5 GB of text: lines of real text, recombined, a tenth of the documents copied with an edit."""
    lines = [line for text in real for line in text.split("\n") if 20 <= len(line) <= 200][:400_000]
    pool = pa.array(lines)
    made: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    for gigabytes in (0.1, 1.0, 5.0):
        file = folder / f"growth-{gigabytes}.parquet"
        schema = pa.schema([("id", pa.string()), ("text", pa.string())])
        size = number = 0
        with pq.ParquetWriter(file, schema, compression="zstd", compression_level=1) as writer:
            while size < gigabytes * 1e9:
                per, rows = 60, 8_000
                drawn = pool.take(pa.array(rng.integers(0, len(lines), per * rows)))
                lists = pa.ListArray.from_arrays(pa.array(np.arange(0, per * rows + 1, per), pa.int32()), drawn)
                texts = pc.call_function("binary_join", [lists, "\n"])
                copied = texts.take(pa.array(rng.integers(0, rows, rows // 10)))
                edited = pc.call_function("binary_join_element_wise", [copied, pa.scalar("one more line"), "\n"])
                texts = pa.concat_arrays([texts, edited])
                size += texts.nbytes
                ids = [str(number + i) for i in range(len(texts))]
                number += len(texts)
                writer.write_table(pa.table({"id": ids, "text": texts}, schema=schema))
        artifact = ours("documents", file, folder)["artifact"]
        file.unlink()
        config = json.dumps({"threshold": THRESHOLD, "memory_gb": 0.1})
        done = ours("dedup", file, folder, artifact, config)
        made[str(gigabytes)] = {
            "gigabytes": round(size / 1e9, 3),
            "documents": number,
            "cpu_s_per_gb": round(done["job_cpu_s"] / (size / 1e9), 3),
            **{k: done[k] for k in ("cpu_s", "job_cpu_s", "peak_rss_mb", "summary")},
        }
        shutil.rmtree(folder / "store", ignore_errors=True)
    return made


def scripts(texts: list[str], megabytes: int) -> dict[str, float]:
    """MB a second a core of signing, by script: real text in ASCII, drawn letters of Chinese and Thai; and what share of the time
    goes to the form of ASCII, which is its own."""
    from pipelines.dedup.minhash import Banding, permutations, sign_texts
    from pipelines.texts.forms import word_forms

    rng = np.random.default_rng(0)
    letters = {"chinese": np.arange(0x4E00, 0x8000), "thai": np.array([*range(0x0E01, 0x0E3B), *range(0x0E40, 0x0E4E)])}
    by_script = {
        script: [
            rng.choice(some, 1000).astype("<u4").tobytes().decode("utf-32-le")
            for _ in range(megabytes * 1_000_000 // 3000)
        ]
        for script, some in letters.items()
    }
    by_script["ascii"] = [text for text in texts if text.isascii()]
    a, b = permutations(112)
    rates: dict[str, float] = {}
    for script, some in by_script.items():
        column = texts_of(pa.array(some))
        sign_texts(texts_of(pa.array(some[:1])), 5, Banding(14, 8), a, b)
        before = time.process_time()
        sign_texts(column, 5, Banding(14, 8), a, b)
        spent = time.process_time() - before
        rates[script] = round(float(column.offsets[-1]) / 1e6 / spent, 1)
        if script == "ascii":
            before = time.process_time()
            word_forms(column)
            rates["share_of_ascii_form"] = round((time.process_time() - before) / spent, 4)
    return rates


def equal_to_reference(texts: list[str]) -> dict[str, int]:
    """Statistics by the kernel and by plain Python, row by row."""
    from benchmarks.parts.plain_statistics import plain
    from pipelines.filter.statistics import measure

    beyond = [text for text in texts if not text.isascii() and len(text) < 50_000][:100]
    sample = [text for text in texts[:: max(len(texts) // 200, 1)] if len(text) < 50_000] + beyond
    rows = measure(pa.array(sample)).to_pylist()
    return {
        "rows": len(sample),
        "beyond_ascii": len(beyond),
        "equal": sum(row == plain(text) for row, text in zip(rows, sample, strict=True)),
    }


def identical_ids(texts: list[str], megabytes: int) -> dict[str, Any]:
    """Ids by the cache and by the tokenizer itself: real text, and characters drawn at random."""
    from pipelines.tokenize.bpe import train_bpe
    from pipelines.tokenize.byte_level import ByteLevel
    from pipelines.tokenize.pretokens import PretokenCache

    tokenizer = train_bpe(iter([texts[:: max(len(texts) // 500, 1)]]), 32_000)
    tokenizer.encode_special_tokens = True

    def encode(batch: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]

    rng = random.Random(0)
    ranges = (
        (9, 14),
        (32, 127),
        (32, 127),
        (160, 600),
        (0x2000, 0x2070),
        (0x3000, 0x3100),
        (0x4E00, 0x5000),
        (0x1F600, 0x1F650),
    )
    fuzzed = [
        "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randint(0, 300))) for _ in range(5_000)
    ]
    parts = ByteLevel.read(tokenizer.to_str())
    assert parts is not None
    cache = PretokenCache(tokenizer, parts)
    compared = different = size = 0
    for batch in [fuzzed, *(texts[i : i + 500] for i in range(0, len(texts), 500))]:
        if size > megabytes * 1_000_000:
            break
        for got, expected in zip(cache.encode(texts_of(pa.array(batch))).of_each(), encode(batch), strict=True):
            compared += 1
            different += int(got.tolist() != expected)
        size += sum(len(text.encode()) for text in batch)
    return {"texts": compared, "fuzzed": len(fuzzed), "megabytes": round(size / 1e6, 1), "different": different}


def damaged(folder: Path) -> dict[str, bool]:
    """Files that are broken: nothing crashes, and every row is kept or told of."""
    from engine.execution.worker import carry_out
    from engine.store.store import Store
    from pipelines.read.stage import Read

    home = folder / "damaged"
    home.mkdir()
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(50_000)]}), home / "whole.parquet", row_group_size=1000)
    data = (home / "whole.parquet").read_bytes()
    (home / "whole.parquet").unlink()
    (home / "cut.parquet").write_bytes(data[: len(data) // 2])
    (home / "lines.jsonl").write_text("".join('{"text": "good"}\n{"text": "bro\n' for _ in range(100)))
    (home / "latin.txt").write_bytes("déjà vu, naïve café and so on\n".encode("latin-1") * 20)
    (home / "fine.txt").write_text("fine text")

    def read(name: str) -> tuple[int, int]:
        config = Read.model_validate({"paths": [str(home / "fine.txt"), str(home / name)], "max_failed": 1.0})
        made = carry_out(Store(str(folder / "store-damaged")), "read", config, {})
        rejected = made.rejected()
        return made.rows - 1, 0 if rejected is None else len(rejected)

    kept, gone = read("latin.txt")
    return {
        "truncated_parquet": read("cut.parquet")[1] >= 1,
        "broken_jsonl": read("lines.jsonl") == (100, 100),
        "mixed_encodings": kept + gone == 1,
    }


def peer_python(home: Path, wanted: list[str]) -> str:
    """The interpreter of the peers' own environment, made and filled if need be."""
    python = home / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, stdout=sys.stderr)
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    pip = (
        [uv, "pip", "install", "--compile-bytecode", "--python", str(python)]
        if uv
        else [str(python), "-m", "pip", "install"]
    )
    subprocess.run(
        [*pip, "-q", "pyarrow", *(p for name in wanted for p in PEERS.get(name, (name,))[0].split())],
        check=True,
        stdout=sys.stderr,
    )
    return str(python)


def tokenized(texts: list[str], folder: Path, megabytes: int, peers: Path) -> dict[str, Any]:
    """Encoding and the whole stage, beside other encoders; see `benchmarks.parts.tokenizing`."""
    home = peers.with_name(peers.name + "-encoders")
    return tokenizing.tokenizing(
        texts, folder / "tokenizing", megabytes, lambda names: peer_python(home, names), measured
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--quick", action="store_true", help="small corpora: does it run, not how fast")
    parser.add_argument("--only", choices=["tokenizing"], help="this part alone")
    parser.add_argument("--growth", action="store_true", help="also 0.1, 1 and 5 GB of text (minutes, 15 GB of disk)")
    parser.add_argument("--megabytes", type=int, default=550)
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated; empty for none")
    parser.add_argument("--peer-env", type=Path, default=Path(tempfile.gettempdir()) / "flywheel-peers")
    parser.add_argument("--keep", type=Path, help="leave the corpora in this folder")
    parser.add_argument("--part", nargs=3, metavar=("PART", "SOURCE", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--options", nargs="*", default=[], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        run_part(given.part[0], Path(given.part[1]), Path(given.part[2]), given.options)
        return
    folder = given.keep or Path(tempfile.mkdtemp(prefix="flywheel-curation-"))
    folder.mkdir(parents=True, exist_ok=True)
    quick: bool = given.quick
    if given.only:
        size = 5 if quick else min(given.megabytes, 100)
        alone = tokenized(installed_texts(size * 1_000_000), folder, size, given.peer_env)
        if not given.keep:
            shutil.rmtree(folder, ignore_errors=True)
        print(json.dumps({"tokenizing": alone, "claims": tokenizing.claims(alone)}, indent=None if given.json else 1))
        return
    real = installed_texts((20 if quick else given.megabytes) * 1_000_000)
    made, origin = planted(real, *((2_000, 1_600) if quick else (50_000, 40_000)))
    some, some_origin = planted(real, *((1_000, 800) if quick else (8_000, 6_400)))
    corpora = {"real": real, "planted": made, "part": some}
    files = {name: folder / f"{name}.parquet" for name in corpora}
    for name, texts in corpora.items():
        write(texts, files[name])
    judges = {"planted": Judge(made, origin), "part": Judge(some, some_origin)}
    said: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version(),
        "threshold": THRESHOLD, "quick": quick,
        "corpora": {
            name: {"documents": len(t), "megabytes": round(sum(len(x.encode()) for x in t) / 1e6, 1)}
            for name, t in corpora.items()
        },
    }  # fmt: skip
    few = "5" if quick else "100"
    said["kernels"] = {
        "signatures": ours("signatures", files["real"], folder)["mb_per_s_core"],
        "statistics": ours("statistics", files["real"], folder)["mb_per_s_core"],
        "tokenize": ours("tokenize", files["real"], folder, few)["mb_per_s_core"],
        "encode_batch_fast": ours("encode_batch_fast", files["real"], folder, few)["mb_per_s_core"],
    }
    said["scripts"] = scripts(real, 3 if quick else 30)
    said["statistics"] = equal_to_reference(real)
    said["ids"] = identical_ids(real, int(few))
    said["shards"] = shards(folder)
    said["dedup"] = {"flywheel": {}}
    artifacts = {name: ours("documents", file, folder)["artifact"] for name, file in files.items()}
    for name, file in files.items():
        # Compiled code is there already: the kernels above and this uncounted run of the smallest made it.
        if not said["dedup"]["flywheel"]:
            config = json.dumps({"threshold": THRESHOLD, "recall": 0.98})
            ours("dedup", files["part"], folder, artifacts["part"], config)
        got = ours("dedup", file, folder, artifacts[name], json.dumps({"threshold": THRESHOLD}))
        rows = removals(got.pop("artifact"), folder)
        pairs = [(int(r["id"]), int(r["kept_id"])) for r in rows]
        verdict: dict[str, Any] = judges[name](pairs) if name in judges else {"removed": len(rows)}
        said["dedup"]["flywheel"][name] = {**got, **verdict}
    said["checks"] = ours("checks", files["real"], folder, artifacts["real"])
    said["tokenizing"] = tokenized(real, folder, int(few), given.peer_env)
    wanted = [peer for peer in given.peers.split(",") if peer]
    for peer in wanted:
        said["dedup"][peer] = {}
        for name in ("part",) if peer in SLOW else ("real", "planted"):
            try:
                python = peer_python(given.peer_env, [peer])
                out = folder / f"{peer}-{name}.json"
                script = str(ROOT / "benchmarks" / "peers" / "dedup.py")
                usage = measured([python, script, peer, str(files[name]), str(out), str(THRESHOLD)])
                got = json.loads(out.read_text())
                pairs = [(i, k) for i, k in got["removed"]]
                verdict = judges[name](pairs) if name in judges else {"removed": len(pairs)}
                said["dedup"][peer][name] = {**usage, **verdict, "version": got["version"]}
            except (RuntimeError, subprocess.CalledProcessError) as error:
                said["dedup"][peer][name] = {"failed": str(error)[-400:]}
    said["alpaca"] = alpaca(folder)
    said["damaged"] = damaged(folder)
    said["bad_input"] = bad_input(folder, quick)
    said["growth"] = growth(real, folder) if given.growth else None
    if not given.keep:
        shutil.rmtree(folder, ignore_errors=True)
    said["claims"] = claims(said)
    print(json.dumps(said, indent=None if given.json else 1))


def claims(said: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry for each line that is to be shown."""
    made: list[dict[str, Any]] = []

    def claim(name: str, value: Any, bar: str, holds: bool, why: str = "") -> None:
        made.append({"id": name, "value": value, "bar": bar, "holds": bool(value is not None and holds)})
        if value is None:
            made[-1]["why"] = why

    def ratio(peer: str, bar: int, corpus: str) -> None:
        theirs, mine = said["dedup"].get(peer, {}).get(corpus, {}), said["dedup"]["flywheel"][corpus]
        value = round(theirs["cpu_s"] / mine["cpu_s"], 1) if "cpu_s" in theirs else None
        why = theirs.get("failed", "not among --peers")
        claim(f"dedup_cpu_{peer}_over_ours_{corpus}", value, f">= {bar}", (value or 0) >= bar, why)

    mine = said["dedup"]["flywheel"]
    claim("dedup_recall", mine["planted"]["recall"], ">= 0.99", mine["planted"]["recall"] >= 0.99)
    claim("dedup_precision", mine["planted"]["precision"], "1.0", mine["planted"]["precision"] == 1.0)
    for peer, (_, bar) in PEERS.items():
        for corpus in ("part",) if peer in SLOW else ("real", "planted"):
            ratio(peer, bar, corpus)
    peak = mine["real"]["peak_rss_mb"]
    claim("dedup_peak_mb", peak, f"< 1000 on {said['corpora']['real']['megabytes']} MB", peak < 1000)
    checks = said["checks"]
    more = sum(checks[f"{what}_cpu_s"] - checks[f"{what}_unchecked_cpu_s"] for what in ("read", "write"))
    part = round(more / mine["real"]["job_cpu_s"], 4)
    claim("checks_share_of_dedup_cpu", part, "<= 0.03", part <= 0.03)
    rate = mine["real"]["signatures_mb_per_s_core"]
    claim("signatures_mb_per_s_core_in_the_job", rate, ">= 500", rate >= 500)
    by_script = said["scripts"]
    share = by_script["share_of_ascii_form"]
    claim("signatures_share_of_the_form_of_ascii", share, "<= 0.05", share <= 0.05)
    slowest = round(by_script["ascii"] / min(by_script["chinese"], by_script["thai"]), 1)
    claim("signatures_ascii_over_slowest_script", slowest, "<= 10", slowest <= 10)
    grown = said["growth"]
    why = "needs --growth"
    if grown:
        rates = [g["cpu_s_per_gb"] for g in grown.values()]
        spread = round(max(rates) / min(rates) - 1, 3)
        flat = round(grown["5.0"]["peak_rss_mb"] / grown["1.0"]["peak_rss_mb"], 3)
        claim("growth_cpu_per_gb_spread", spread, "<= 0.15", spread <= 0.15)
        claim("growth_memory_5_gb_over_1_gb", flat, "<= 1.1", flat <= 1.1)
    else:
        claim("growth_cpu_per_gb_spread", None, "<= 0.15", False, why)
        claim("growth_memory_5_gb_over_1_gb", None, "<= 1.1", False, why)
    kernels, equal = said["kernels"], said["statistics"]
    claim("statistics_mb_per_s_core", kernels["statistics"], ">= 200", kernels["statistics"] >= 200)
    claim(
        "statistics_equal_to_plain_python", f"{equal['equal']}/{equal['rows']}", "all", equal["equal"] == equal["rows"]
    )
    times = round(kernels["tokenize"] / kernels["encode_batch_fast"], 1)
    claim("tokenize_and_pack_over_encode_batch_fast", times, ">= 5", times >= 5)
    made.extend(tokenizing.claims(said["tokenizing"]))
    claim("tokenize_texts_with_other_ids", said["ids"]["different"], "0", said["ids"]["different"] == 0)
    read = said["shards"]["sequential_mtokens_per_s_core"]
    claim("shards_mtokens_per_s_core", read, ">= 1000", read >= 1000)
    answers = said["alpaca"]
    held = answers.get("hold") == answers.get("removed")
    claim("alpaca_removed", answers.get("removed"), "each Jaccard holds", held, answers.get("skipped", ""))
    for name, fine in said["damaged"].items():
        claim(f"bad_input_{name}", fine, "all rows accounted for", fine)
    bad = said["bad_input"]
    for name in ("one_word", "identical", "huge"):
        claim(f"bad_input_{name}_lost", bad[name]["lost"], "0", bad[name]["lost"] == 0)
    twice = round(bad["one_word"]["job_cpu_s"] / bad["one_word_half"]["job_cpu_s"], 2)
    claim("bad_input_twice_the_documents_cost", twice, "<= 2.5 (no square)", twice <= 2.5)
    return made


if __name__ == "__main__":
    main()
