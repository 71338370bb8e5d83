"""Encoding against Hugging Face's tokenizers, gigatoken and Flywheel as it was before, and whether ids are the same.

Vocabularies are trained here: a real model's can't be had without its hub. What decides the ids beside it, how texts are cut, is that of the model.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.parts.claims import Claim, claim
from benchmarks.parts.near_duplicates import write
from pipelines.texts.columns import texts_of
from pipelines.tokenize.byte_level import GPT2, LLAMA3, O200K, PATTERNS, QWEN2

ROOT = Path(__file__).parents[2]
BEFORE = "716eff0"  # where new pretokens were encoded by the tokenizer, and a text byte by byte
GIGATOKEN = ["gigatoken==0.10.0", "pyarrow"]
FAMILIES = {"gpt2": GPT2, "llama3": LLAMA3, "qwen2": QWEN2, "gpt_oss": O200K}
ROUNDS = 3
Measured = Callable[[list[str], dict[str, str]], dict[str, float]]


def tokenizing(
    texts: list[str], folder: Path, megabytes: int, python: Callable[[list[str]], str], measured: Measured
) -> dict[str, Any]:
    """
    Args:
        texts: of which so many megabytes are encoded; the first are trained on.
        python: the interpreter of an environment with these packages.
        measured: runs a command with more environment, and says what it took.
    """
    folder.mkdir(parents=True, exist_ok=True)
    some = list(_first(texts, megabytes * 1_000_000))
    source = folder / "encode.parquet"
    write(some, source)
    part = folder / "encode-part.parquet"  # for what takes 30 times as long
    write(list(_first(texts, megabytes * 100_000)), part)
    files = _models(texts, folder)
    said: dict[str, Any] = {"documents": len(some), "encoders": {}, "ids": {}}
    trees = {"flywheel": ROOT, "before": _before(folder)}
    for family, model in files.items():
        said["ids"][family] = _identical(some, model)
        one: dict[str, Any] = {}
        said["encoders"][family] = one
        for name, tree in trees.items():
            if tree and (name == "flywheel" or family == "gpt2"):  # the others went to the tokenizer
                one[name] = _rates("flywheel", source, model, folder, sys.executable, measured, tree)
        one["tokenizers"] = _rates("tokenizers", part, model, folder, sys.executable, measured)
        try:
            one["gigatoken"] = _rates("gigatoken", source, model, folder, python(GIGATOKEN), measured)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            one["gigatoken"] = {"failed": str(error)[-300:]}
    said["training"] = _training(source, folder, python, measured)
    said["stage"] = {
        name: _stage(source, folder / f"stage-{name}", tree, measured) for name, tree in trees.items() if tree
    }
    return said


def claims(said: dict[str, Any]) -> list[Claim]:
    made: list[Claim] = []
    for family, of_it in said["encoders"].items():
        ours, told = of_it["flywheel"], of_it
        if family == "gpt2":
            made.append(claim("encode_warm_mb_per_s_core", ours["warm"], ">= 200", ours["warm"] >= 200, encoders=told))
            made.append(
                claim("encode_cold_mb_per_s_core", ours["cold"], ">= 120, each pretoken proven", ours["cold"] >= 120)
            )
            if "before" in of_it:
                times = round(ours["cold"] / of_it["before"]["cold"], 2)
                made.append(claim("encode_cold_over_before", times, ">= 4", times >= 4))
        else:
            for name in ("warm", "cold"):
                made.append(claim(f"encode_{family}_{name}_mb_per_s_core", ours[name], "told", True, encoders=told))
    trained = said["training"]
    same = trained["flywheel"].get("merges") == trained["tokenizers"].get("merges")
    made.append(claim("training_merges_of_tokenizers", same, "the same", same))
    best = min((one["cpu_s"] for name, one in trained.items() if name != "flywheel" and "cpu_s" in one), default=None)
    share = round(trained["flywheel"]["cpu_s"] / best, 2) if best else None
    made.append(claim("training_over_the_fastest_peer", share, "<= 1", share is not None and share <= 1, cpu_s=trained))
    if "before" in said["stage"]:
        times = round(said["stage"]["before"] / said["stage"]["flywheel"], 2)
        made.append(claim("stage_over_before", times, ">= 3", times >= 3, cpu_s=said["stage"]))
    for family, ids in said["ids"].items():
        same = ids["different"] == 0
        made.append(
            claim(f"ids_{family}_different", ids["different"], f"0 in {ids['megabytes']} MB, fuzzed too", same, **ids)
        )
    return made


def _first(texts: list[str], size: int) -> Iterator[str]:
    for text in texts:
        if size <= 0:
            return
        size -= len(text.encode())
        yield text


def _models(texts: list[str], folder: Path) -> dict[str, Path]:
    """A tokenizer.json of 32,000 tokens for each family, trained by `tokenizers` on a thousand texts that are cut as the family does."""
    from pipelines.tokenize.special_tokens import SPECIAL

    byte_level = pre_tokenizers.ByteLevel
    patterns = {number: pattern for pattern, number in PATTERNS.items()}
    made: dict[str, Path] = {}
    for family, number in FAMILIES.items():
        one: Any = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(patterns[number]), "isolated")
        steps = pre_tokenizers.Sequence([split, byte_level(add_prefix_space=False, use_regex=False)])  # pyright: ignore[reportArgumentType]
        one.pre_tokenizer = byte_level(add_prefix_space=False) if family == "gpt2" else steps
        one.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=32_000, special_tokens=list(SPECIAL), initial_alphabet=byte_level.alphabet(), show_progress=False
        )  # pyright: ignore[reportCallIssue]
        one.train_from_iterator(texts[:: max(len(texts) // 1000, 1)], trainer)
        parts = json.loads(one.to_str())
        parts["model"]["ignore_merges"] = family == "llama3"
        parts["normalizer"] = {"type": "NFC"} if family == "qwen2" else None
        made[family] = folder / f"{family}.json"
        made[family].write_text(json.dumps(parts))
    return made


def _rates(
    encoder: str, source: Path, model: Path, folder: Path, python: str, measured: Measured, tree: Path | None = None
) -> dict[str, float]:
    """Megabytes a CPU second, in the middle of some processes, and the CPU seconds to load the tokenizer; nothing is known from before."""
    cold, warm, load = list[float](), list[float](), list[float]()
    script, out = ROOT / "benchmarks" / "peers" / "encode.py", folder / "encoded.json"
    for index in range(1 if encoder == "tokenizers" else ROUNDS):
        cache = folder / "caches" / f"{model.stem}-{tree.name if tree else encoder}-{index}"
        command = [python, str(script), encoder, str(source), str(model), str(out), *([str(tree)] if tree else [])]
        measured(command, {"XDG_CACHE_HOME": str(cache), "TOKENIZERS_PARALLELISM": "false"})
        told = json.loads(out.read_text())
        cold.append(told["megabytes"] / told["cold_s"])
        warm.append(told["megabytes"] / told["warm_s"])
        load.append(told["load_s"])
    rates = {"cold": round(statistics.median(cold), 1), "warm": round(statistics.median(warm), 1)}
    return {**rates, "load_s": round(statistics.median(load), 3)}


def _training(source: Path, folder: Path, python: Callable[[list[str]], str], measured: Measured) -> dict[str, Any]:
    """CPU seconds to train on all the texts, by trainer, and a digest of the merges; the least of so many rounds but for the slowest."""
    script, out = ROOT / "benchmarks" / "peers" / "train_bpe.py", folder / "trained.json"
    told: dict[str, Any] = {}
    for name in ("flywheel", "tokenizers", "gigatoken"):
        for _ in range(1 if name == "tokenizers" else ROUNDS):
            try:
                interpreter = python(GIGATOKEN) if name == "gigatoken" else sys.executable
                measured([interpreter, str(script), name, str(source), str(out), str(ROOT)], {"RAYON_NUM_THREADS": "1"})
                one = json.loads(out.read_text())
                told[name] = min(one, told.get(name, one), key=lambda made: made["cpu_s"])
            except (RuntimeError, subprocess.CalledProcessError) as error:
                told[name] = {"failed": str(error)[-300:]}
    return told


def _before(folder: Path) -> Path | None:
    """Flywheel as it was; None where there is no history."""
    home = folder / "before"
    told = subprocess.run(
        ["git", "archive", BEFORE, "benchmarks", "engine", "pipelines", "flywheel"], cwd=ROOT, capture_output=True
    )
    if told.returncode:
        return None
    shutil.rmtree(home, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(told.stdout)) as archive:
        archive.extractall(home, filter="data")
    return home


def _stage(source: Path, folder: Path, tree: Path, measured: Measured) -> float:
    """CPU seconds of the whole stage: read, encode, pack, write; in the middle of some processes."""
    told = list[float]()
    for index in range(ROUNDS):
        out = folder / str(index) / "tokenize.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-P", "-c", _STAGE, str(tree), str(source), str(out)]
        measured(command, {"XDG_CACHE_HOME": str(folder / f"cache-{index}")})
        told.append(json.loads(out.read_text())["cpu_per"])
        shutil.rmtree(out.parent)
    return round(statistics.median(told), 2)


_STAGE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from benchmarks.curation import run_part
run_part("tokenize", Path(sys.argv[2]), Path(sys.argv[3]), [])
"""


def _identical(texts: list[str], model: Path) -> dict[str, Any]:
    """Ids against the tokenizer's own: real text, and characters drawn at random."""
    from pipelines.tokenize.byte_level import ByteLevel
    from pipelines.tokenize.pretokens import PretokenCache

    tokenizer: Any = Tokenizer.from_str(model.read_text())
    tokenizer.encode_special_tokens = True
    parts = ByteLevel.read(model.read_text())
    assert parts is not None
    cache = PretokenCache(tokenizer, parts)
    compared = different = size = 0
    for batch in [fuzzed(), *(texts[i : i + 500] for i in range(0, len(texts), 500))]:
        wanted = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        for got, expected in zip(cache.encode(texts_of(pa.array(batch))).of_each(), wanted, strict=True):
            compared += 1
            different += int(got.tolist() != expected.ids)
        size += sum(len(text.encode()) for text in batch)
    told = {"different": different, "texts": compared, "megabytes": round(size / 1e6, 1)}
    return {
        **told,
        "unproven_pretokens": cache.asked,
        "corrected_pretokens": cache.corrected,
        "by_the_tokenizer": cache.whole,
    }


def fuzzed() -> list[str]:
    """5,000 texts of characters of many scripts, spaces and symbols; half of them with marks, some with what Unicode has not assigned, too."""
    rng = random.Random(0)
    ranges = (
        (9, 14), (32, 127), (32, 127), (160, 600), (0x300, 0x370), (0x5D0, 0x650), (0x900, 0x980), (0xE00, 0xE60),
        (0x1E00, 0x1F00), (0x2000, 0x2070), (0x3000, 0x3100), (0x4E00, 0x5000), (0xAC00, 0xAE00), (0x1F600, 0x1F650),
    )  # fmt: skip
    every = [[chr(point) for point in range(*places)] for places in ranges]
    assigned = [[char for char in chars if unicodedata.category(char) != "Cn"] for chars in every]
    plain = [unmarked for chars in assigned if (unmarked := [c for c in chars if unicodedata.category(c)[0] != "M"])]
    drawn = ((plain, assigned, every)[(i % 10 >= 5) + (i % 10 == 9)] for i in range(5_000))
    return ["".join(rng.choice(rng.choice(chars)) for _ in range(rng.randint(0, 300))) for chars in drawn]
