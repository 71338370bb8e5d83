"""Two learning rates, three seeds each, over the quickstart's DPO: killed once, continued, and two of its runs compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.parts.claims import Claim, claim
from engine.store.artifact import Artifact
from engine.store.store import Store
from labeling.argilla import server

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from flywheel.commandline import main; main()"]
RECIPE = "recipes/quickstart.yaml"
RATES = ("1.0e-4", "3.0e-4")  # the first is the recipe's own, so that the plain run is one of the trials
SEEDS = (7, 8, 9)
TRIED = ("dpo", "results")  # what every trial makes for itself: the stage that is tried, and what is measured of it


def dpo_sweep(folder: Path, told: dict[str, Any]) -> list[Claim]:
    """Run it all in a store in this folder, which may hold the quickstart's own run already, but none of the sweep's."""
    home = folder / "argilla"
    running = server.up(home)
    environment = {**os.environ, "ARGILLA_API_URL": running.url, "ARGILLA_API_KEY": running.api_key}
    try:
        return _claims(folder, environment, told)
    finally:
        server.down(home)


def _claims(folder: Path, environment: dict[str, str], told: dict[str, Any]) -> list[Claim]:
    store = Store(str(folder / "store"))

    def flywheel(*arguments: str) -> str:
        done = subprocess.run(
            [*COMMAND, *arguments, "--store", store.url], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"flywheel {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return done.stdout

    began = time.monotonic()
    flywheel("run", RECIPE)
    told["quickstart_s"] = round(time.monotonic() - began, 1)
    plain = {name: entry["artifact"] for name, entry in (store.run("quickstart") or {})["stages"].items()}

    arguments = ["sweep", RECIPE, "--over", f"dpo.lr={','.join(RATES)}", "--seeds", str(len(SEEDS)), "--json"]
    killed_in, before = _killed(store, arguments, environment)
    began = time.monotonic()
    found = json.loads(flywheel(*arguments))
    told["continued_s"] = round(time.monotonic() - began, 1)
    after = _stamps(store)
    kept = [folder for folder, stamp in before.items() if after.get(folder) == stamp]
    picture = folder / "sweep.svg"
    table = flywheel(*arguments[:-1], "--to", str(picture))  # nothing is left to do: what it tells people
    told["table"] = table.splitlines()

    runs = {trial["name"]: (store.run(trial["name"]) or {})["stages"] for trial in found["trials"]}
    made = {stage: {stages[stage]["artifact"] for stages in runs.values()} for stage in plain}
    once = [stage for stage, artifacts in made.items() if artifacts == {plain[stage]}]
    everything = Counter(name.rpartition("-")[0] for name in _stamps(store))
    told["artifacts"] = dict(everything)
    undisturbed = _undisturbed(folder, store, runs[killed_in], environment)
    return [
        claim("sweep.shared_stages_are_made_once", {"once": len(once), "anew": sorted(set(plain) - set(once))},
              f"all of {len(plain)} stages but dpo and results are the quickstart's own; these once a trial",
              sorted(set(plain) - set(once)) == sorted(TRIED) and all(len(made[stage]) == 6 for stage in TRIED)
              and all(everything[kind] == 6 for kind in ("dpo", "evaluate"))),
        claim("sweep.killed_and_continued", {"killed_in": killed_in, "artifacts_before": len(before), "left_as_they_were": len(kept),
              "as_undisturbed": undisturbed}, "what was made before the kill is not made again; the killed DPO's digest is an undisturbed one's",
              len(kept) == len(before) and undisturbed and not found["failed"]),
        *_table_claims(found, table, picture),
        _compared(store, found, flywheel, told),
    ]  # fmt: skip


def _stamps(store: Store) -> dict[str, int]:
    """Finished artifact -> when its manifest was written, in nanoseconds."""
    manifests = Path(store.path("artifacts")).glob("*/manifest.json")
    return {file.parent.name: file.stat().st_mtime_ns for file in manifests}


def _killed(store: Store, arguments: list[str], environment: dict[str, str]) -> tuple[str, dict[str, int]]:
    """SIGKILL in the middle of the DPO of the third trial: its name, and what was finished by then."""
    run = subprocess.Popen(
        [*COMMAND, *arguments, "--store", store.url],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wanted = f"quickstart,dpo.lr={RATES[0]},seed={SEEDS[2]}"
    end = time.monotonic() + 1800
    while time.monotonic() < end and run.poll() is None:
        for spec in store.workplace().glob("dpo-*/spec.json"):
            curve = spec.with_name("metrics.jsonl")
            if (
                json.loads(spec.read_text() or "{}").get("run") == wanted
                and curve.exists()
                and curve.read_bytes().count(b"\n") > 1
            ):
                run.kill()
                run.wait()
                return wanted, _stamps(store)
        time.sleep(0.02)
    run.kill()
    raise RuntimeError(f"the sweep ended with {run.wait()} and was not seen to train in {wanted}")


def _undisturbed(folder: Path, store: Store, stages: dict[str, Any], environment: dict[str, str]) -> bool:
    """Whether the DPO of the killed trial has the digest of one that is made alone, in a store that has all that comes before it."""
    other = Store(str(folder / "undisturbed"))
    (Path(other.path("artifacts"))).mkdir(parents=True, exist_ok=True)
    for name in _stamps(store):
        target = Path(other.path("artifacts", name))
        if name.rpartition("-")[0] not in ("dpo", "evaluate") and not target.exists():
            target.symlink_to(store.path("artifacts", name))
    settings = ["--set", f"dpo.lr={RATES[0]}", "--set", f"dpo.seed={SEEDS[2]}"]
    subprocess.run(
        [*COMMAND, "run", RECIPE, "--only", "dpo", *settings, "--as", "alone", "--store", other.url],
        cwd=ROOT, env=environment, check=True, capture_output=True,
    )  # fmt: skip
    return other.find("alone/dpo").digest == _artifact(store, stages["dpo"]["artifact"]).digest


def _artifact(store: Store, name: str) -> Artifact:
    found = store.get(name)
    assert found is not None, name
    return found


def _table_claims(found: dict[str, Any], table: str, picture: Path) -> list[Claim]:
    """Every number that is measured of DPO's answers has a line a rate, an interval, and a difference with one."""
    measured = [one for one in found["metrics"] if one["stage"] == "results" and one["model"] == "dpo"]
    whole = bool(measured)
    for one in measured:
        first, second = one["settings"]
        bounds = [line["mean"][side] for line in (first, second) for side in ("low", "high")]
        bounds += [second["difference"][side] for side in ("low", "high")]
        whole &= all(isinstance(bound, float) and np.isfinite(bound) for bound in bounds)
        whole &= len(first["seeds"]) == len(second["seeds"]) == len(SEEDS)
    told = {one["metric"]: [line["mean"]["value"] for line in one["settings"]] for one in measured}
    said = "beyond noise" in table or "within noise" in table
    others = {f"{one['model']} {one['metric']}" for one in found["metrics"] if one["model"] in ("base", "sft", "ppo")}
    return [
        claim("sweep.table_with_intervals", told, "two rates, three seeds each: means and difference with 95 % intervals, and a picture",
              whole and said and picture.read_text().startswith("<svg")),
        claim("sweep.models_that_are_not_tried_stay_out", sorted(others),
              "no line for models that are the same in all trials", not others),
    ]  # fmt: skip


def _compared(store: Store, found: dict[str, Any], flywheel: Any, told: dict[str, Any]) -> Claim:
    """`compare` of the two rates, first seed: what is configured otherwise, and each difference as numpy has it."""
    first, second = (f"quickstart,dpo.lr={rate},seed={SEEDS[0]}" for rate in RATES)
    compared = json.loads(flywheel("compare", first, second, "--json"))
    told["compare"] = flywheel("compare", first, second).splitlines()[0]
    tested = {
        one["metric"]: one["difference"] for one in compared["measured"] if one["model"] == "dpo" and one["difference"]
    }
    results = [_artifact(store, (store.run(run) or {})["stages"]["results"]["artifact"]) for run in (first, second)]
    rows = [result.to_polars().filter(pl.col("model") == "dpo") for result in results]
    tables = [result.read_json("table.json")["dpo"] for result in results]
    right = bool(tested)
    for metric, difference in tested.items():
        means = [
            dict(frame.filter(pl.col("metric") == metric).group_by("subject").agg(pl.col("value").mean()).iter_rows())
            for frame in rows
        ]
        each = np.array([means[1][prompt] - means[0][prompt] for prompt in means[0]])
        wanted = float(each.mean()) if len(each) else tables[1][metric] - tables[0][metric]
        right &= bool(np.isclose(difference["value"], wanted, atol=1e-9)) and difference["paired"] == bool(len(each))
        if len(each) and each.std() > 0:  # the bootstrap's bounds lie where the normal approximation has them
            half = 1.96 * each.std(ddof=1) / np.sqrt(len(each))
            right &= all(
                abs(difference[side] - bound) < half / 3
                for side, bound in (("low", each.mean() - half), ("high", each.mean() + half))
            )
        right &= difference["low"] < difference["value"] < difference["high"]
        right &= difference["beyond_noise"] == (difference["low"] > 0 or difference["high"] < 0)
    configured = compared["configured"]
    named = list(configured) == ["dpo"] and any("lr" in line for line in configured["dpo"])
    value = {
        "configured": configured,
        "tested": len(tested),
        "beyond_noise": sorted(m for m, d in tested.items() if d["beyond_noise"]),
    }
    return claim("sweep.compare_says_what_differs", value,
                 "dpo's lr alone is configured otherwise; differences equal numpy's, prompt by prompt where there are prompts, each with its interval", named and right)  # fmt: skip
