"""Parts that other benchmarks measure; here they get their claims."""

from __future__ import annotations

from typing import Any

from benchmarks.parts.scaling.bench import Bench, borrowed

REPLICAS = "benchmarks.parts.replicas"


def replicas(bench: Bench) -> None:
    """Engines side by side: how busy they are, what a killed one costs, and what they give over engines without us."""
    few: dict[str, Any] = {"replicas": 2, "prompts": 24} if bench.quick else {}
    with bench.attempt("busy"):
        told: dict[str, Any] = borrowed(REPLICAS, "busy_share")(**few)
        bench.number(busy=told)
        bench.claim("replicas_busy", told["busy"])
    with bench.attempt("killed"):
        told = borrowed(REPLICAS, "killed")(**few)
        bench.number(killed=told)
        bench.claim("replicas_killed", told["same_bytes"] and told["deaths"] > 0 and not told["lost"] + told["doubled"])
    with bench.attempt("over bare"):
        told = borrowed(REPLICAS, "over_bare")(replicas=2, **({"prompts": 64, "turns": 1} if bench.quick else {}))
        bench.number(over_bare=told)
        bench.claim("replicas_over_bare", told["share"])


def engines(bench: Bench) -> None:
    """Six small stages over one model: an engine handed on against one started for each."""
    told: dict[str, Any] = borrowed(REPLICAS, "handed_on")(stages=bench.size(6, 2))
    bench.number(handed_on=told)
    bench.claim("engines_handed_on", told["ratio"], same_bytes=told.get("same_bytes"))


def s3(bench: Bench) -> None:
    """The whole recipe with its store in a bucket, killed and continued."""
    told: dict[str, Any] = borrowed("benchmarks.parts.on_s3", "rounds")(bench.size(10, 1), 0)
    bench.number(s3=told)
    for problem in told["problems"]:
        bench.problem(str(problem))
    bench.claim("s3_same_bytes", bool(told["same"]) and not told["problems"], requests=told["requests"])


def quickstart(bench: Bench) -> None:
    """The quickstart with its stages one by one, and side by side."""
    if bench.quick:
        bench.problem("quickstart: skipped, it takes eleven minutes")
        return
    told: dict[str, Any] = borrowed("benchmarks.parts.side_by_side", "quickstart")()
    bench.number(quickstart=told)
    bench.claim("quickstart_over_before", told["ratio"], wall_s=[told["before_s"], told["after_s"]])
    bench.claim("quickstart_same_bytes", told["same_digests"])
