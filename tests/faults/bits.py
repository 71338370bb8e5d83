"""Bits that flip, files that are cut, emptied or gone: in a finished store, and in what a killed stage left.

python -m tests.faults.bits STORE --flips 1000 --repairs 12    # of a store that is there; it is copied, never touched
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.parts.moments import Moment, Moments
from engine.errors import Damaged
from engine.stage.job import STAYS
from engine.store.schema import DATASETS
from engine.store.store import Store
from engine.upkeep.verification import verify
from tests.faults.ground import FLYWHEEL, Ground, Trial
from tests.faults.outcome import Outcome

HARMS = ("flip", "cut", "emptied", "gone", "longer")


def files_of(store: Path) -> list[str]:
    """Every file of a finished store that was written to stay, relative to it."""
    found = [p for part in ("artifacts", "runs") for p in (store / part).rglob("*") if p.is_file()]
    return sorted(p.relative_to(store).as_posix() for p in found)


def harm(file: Path, how: str, draw: random.Random) -> None:
    """Damage a file."""
    data = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
        return
    if how == "flip" and data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del data[draw.randrange(len(data)) if data else 0 :]
    elif how == "emptied":
        data.clear()
    else:
        data += draw.randbytes(draw.randint(1, 64))
    file.write_bytes(data)


def told_by_verify(store: Path, name: str) -> bool:
    """Whether `flywheel verify` of the artifact or run that a file is of tells of it."""
    folder = name.split("/")[1]
    of = folder.removesuffix(".json") if name.startswith("runs/") else folder
    try:
        return not verify(Store(str(store)), of).whole
    except Exception:
        return not verify(Store(str(store))).whole  # what it is called by is damaged itself


def told_by_reading(store: Path, name: str) -> bool:
    """Whether whoever reads the file by the store's own means is told."""
    opened = Store(str(store))
    if name.startswith("runs/"):
        run = Path(name).stem
        return opened.run(run) is None and (f"runs/{run}.json" in opened.damage or not (store / name).exists())
    folder, _, inside = name.removeprefix("artifacts/").partition("/")
    found = opened.get(folder)
    if found is None:
        return folder in opened.damage or not (store / name).exists()
    try:
        if inside.startswith("logs/"):
            found.log(inside.removeprefix("logs/"))
        elif inside.startswith("data/") and found.kind in DATASETS:
            found.to_table()
        elif inside.startswith("rejected/"):
            found.rejected()
        elif found.kind in DATASETS:
            found.read_file(inside)
        else:
            _ = found.path
    except Damaged:
        return True
    return False


def counts(name: str) -> bool:
    """Whether rows, weights or records are in a file; what is left is told by `verify` alone."""
    inside = name.split("/", 2)[-1]
    return not (name.startswith("artifacts/") and (inside == "README.md" or inside.startswith("logs/")))


def damage(store: Path, name: str, how: str, draw: random.Random) -> Outcome:
    """Damage one file of a filled store, ask both who should tell, and put it back."""
    file, whole = store / name, (store / name).read_bytes()
    kind = name.split("/")[1].rpartition("-")[0] if name.startswith("artifacts/") else "a run's record"
    told = file.stat()
    harm(file, how, draw)
    try:
        changed = not file.exists() or file.read_bytes() != whole
        if not changed or (kind == "a run's record" and how == "gone"):  # nobody can miss what nothing names
            return Outcome(f"bits: {how}", kind, "unhurt")
        if counts(name) and not told_by_reading(store, name):
            return Outcome(f"bits: {how}", kind, "silent", f"{name}: reading does not tell")
        if not told_by_verify(store, name):
            return Outcome(f"bits: {how}", kind, "silent", f"{name}: verify does not tell")
        return Outcome(f"bits: {how}", kind, "told")
    except Exception as error:
        return Outcome(f"bits: {how}", kind, "traceback", f"{name}: {type(error).__name__}: {error}")
    finally:
        file.write_bytes(whole)
        os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))


def repair(ground: Ground, stage: str, seed: int) -> Outcome:
    """Damage a file of a stage's artifact; `run` or `show` tells, and `repair` ends with the digests of before."""
    kind, draw = ground.kind_of[stage], random.Random(seed)
    how = draw.choice(HARMS)
    fault = f"repaired after: {how}"
    with ground.trial(stage, gone=False) as trial:
        names = [
            name for name in files_of(trial.store) if name.split("/")[1] == ground.folder_of[stage] and counts(name)
        ]
        name = draw.choice(names)
        harm(trial.store / name, how, draw)
        code = trial.command("verify", stage)
        if code == 0:
            return Outcome(fault, kind, "silent", f"verify ends with 0 after {how} of {name}: {trial.said[-300:]}")
        code = trial.command("repair", stage)
        came, detail = trial.judge(code)
        if came == "same" and (code := trial.command("verify")):
            came, detail = "wrong", f"verify after the repair: {trial.said[-500:]}"
        return Outcome(fault, kind, "told" if came == "same" else came, f"{name}: {detail}")


def unfinished(ground: Ground, stage: str, seed: int) -> Outcome:
    """Kill a stage that has committed something, at a moment of its work, damage a file that it left, and go on."""
    kind, draw = ground.kind_of[stage], random.Random(seed)
    how = draw.choice(HARMS)
    fault = f"unfinished: {how}"
    with ground.trial(stage) as trial:
        moments = Moments(trial.folder / "moments", trial.store)
        trial.extra = moments.environment
        files: list[Path] = []
        for moment in draw_moments(ground, stage, draw):
            moments.arm(moment)
            trial.end(trial.start())
            if orphans := trial.orphans():
                return Outcome(fault, kind, "orphan", "; ".join(orphans))
            if files := _left(trial):
                break
        trial.extra = {}
        if not files or (trial.artifact / "manifest.json").exists():
            return Outcome(fault, kind, "unhurt")
        harmed = draw.choice(files)
        harm(harmed, how, draw)
        came, detail = trial.finish()
        if came == "wrong" and "flywheel: " in trial.said and "damaged" in trial.said:
            came = "told"
        return Outcome(fault, kind, came, f"{harmed.relative_to(trial.store)}: {detail}")


def _left(trial: Trial) -> list[Path]:
    """Committed partitions, whole checkpoints, indexes, tallies and answers of a stage under way."""
    parts = [p for p in trial.artifact.rglob("*") if p.is_file()]
    scratch = [p for p in trial.scratch.rglob("*") if p.is_file() and p.name not in STAYS]
    return [*parts, *scratch]


def draw_moments(ground: Ground, stage: str, draw: random.Random) -> list[Moment]:
    """Some moments of the work of a stage, in order; what an undisturbed run does is looked at once."""
    with ground.looking, ground.trial(stage) as trial:
        if stage not in ground.moments_of:
            ground.moments_of[stage] = moments = Moments(ground.folder / f"moments-{trial.mark}", trial.store)
            trial.extra = moments.environment
            if trial.command():
                raise RuntimeError(f"undisturbed, `{stage}` fails: {trial.said[-500:]}")
    moments = ground.moments_of[stage].draw(60, draw.randrange(10**6))
    working = [moment for moment in moments if moment.renames > 1]  # before that it is planned
    return sorted(draw.sample(working, min(3, len(working))), key=moments.index)


def faults_of_store(store: Path, count: int, seed: int, hows: tuple[str, ...] = HARMS) -> list[Outcome]:
    draw, names = random.Random(seed), files_of(store)
    return [damage(store, draw.choice(names), hows[n % len(hows)], draw) for n in range(count)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument(
        "--repairs", type=int, default=0, help="then flip so many bits at once, of artifacts drawn, and repair"
    )
    parser.add_argument("--folder", type=Path, default=Path(), help="where the recipe's relative paths lead from")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bits-") as temporary:
        copy = Path(temporary) / "store"
        shutil.copytree(args.store, copy, ignore=shutil.ignore_patterns("tmp", "work"))
        before = {a.id: a.digest for a in Store(str(copy)).artifacts()}
        outcomes = faults_of_store(copy, args.flips, args.seed, ("flip",))
        came = Counter(one.came for one in outcomes)
        bad = [one.detail for one in outcomes if one.came not in ("told", "unhurt")]
        repaired: dict[str, object] = {}
        if args.repairs:
            draw = random.Random(args.seed + 1)
            names = [name for name in files_of(copy) if counts(name)]
            for name in draw.sample(names, args.repairs):
                harm(copy / name, "flip", draw)
            done = subprocess.run(
                [*FLYWHEEL, "repair", "--store", str(copy)],
                capture_output=True,
                text=True,
                cwd=args.folder,
                check=False,
            )
            after = {a.id: a.digest for a in Store(str(copy)).artifacts()}
            whole = verify(Store(str(copy))).whole
            repaired = {"code": done.returncode, "same": after == before, "whole": whole, "said": done.stderr[-1500:]}
        claims = [
            {
                "id": "bit flips told",
                "value": came["told"],
                "bar": f"== {args.flips}",
                "holds": came["told"] == args.flips,
            },
        ]
        if args.repairs:
            same = bool(repaired["same"] and repaired["whole"])
            claims.append(
                {
                    "id": f"digests of before after {args.repairs} flips and `repair`",
                    "value": same,
                    "bar": "true",
                    "holds": same,
                }
            )
        print(
            json.dumps(
                {"benchmark": "bits", "came": dict(came), "bad": bad[:20], "repaired": repaired, "claims": claims}
            )
        )
        return 0 if all(claim["holds"] for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
