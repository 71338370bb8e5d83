"""What was asked of a run and what came out, in sentences for whoever has not seen it: each number with its interval."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.stage.drawing import Intervals
from engine.store.artifact import Artifact, read_artifact
from engine.store.schema import DATASETS
from engine.view.card_facts import IS
from engine.view.report.flow import Stop
from engine.view.report.judge_scores import JudgeScore, rule_of
from engine.view.report.preferred import annotators_of, preferred

Z = 1.959963984540054
# Kinds of annotator: one, several.
ANNOTATORS = {
    "person": ("person", "people"),
    "scripted": ("scripted annotator, a stand-in and no person,", "scripted annotators, stand-ins and no people,"),
    "judge": ("model as judge", "models as judges"),
}


@dataclass(frozen=True)
class Finding:
    """A question, and its answer in one sentence."""

    asked: str
    came_out: str


def findings(stops: Sequence[Stop], scores: Sequence[JudgeScore] = ()) -> list[Finding]:
    """What is known, the answer to the run's main question first: evaluations, then what annotators prefer and how far they agree, then
    what rules and judges gave, then rows made.

    Args:
        scores: what rules and judges gave; told where nothing was evaluated nor ranked, since it is a means to that end otherwise.
    """
    done = [(stop, stop.artifact) for stop in stops if stop.artifact]
    # What compares models with a reference comes before what measures one thing alone; the last word before earlier ones.
    tables = sorted(reversed(done), key=lambda one: not any(isinstance(d, Intervals) for d in one[0].stage.drawings))
    tables = [(stop, a) for stop, a in tables if "table.json" in a.manifest["files"]]
    found = [f for stop, a in tables if (f := _evaluation(stop, a, several=len(tables) > 1))]
    found += [f for stop, _ in done if (f := _preferred(stop, stops))]
    found += [f for _, a in done if (f := _labelling(a))]
    if not found and (judged := _judged(scores)):
        found.append(judged)
    if rows := _rows(stops):
        found.append(rows)
    return found or [Finding("to carry out its stages", f"{len(done)} of {len(stops)} are done")]


def _evaluation(stop: Stop, artifact: Artifact, several: bool) -> Finding | None:
    table: dict[str, dict[str, Any]] = artifact.read_json("table.json")
    reference, prompts = artifact.manifest["summary"].get("reference"), artifact.manifest["summary"].get("prompts")
    on = (f" on {prompts:,} prompts" if prompts else "") + (f" (`{stop.name}`)" if several else "")
    for drawing in stop.stage.drawings:
        if not (isinstance(drawing, Intervals) and drawing.made_of and reference):
            continue
        known = {
            model: bounds
            for model, line in table.items()
            if model != reference and (bounds := _bounds(line, drawing.metric))
        }
        if known:
            others = [model for model in table if model != reference]
            by = f", by the rule `{drawing.made_of}`" if rule_of(artifact, drawing.made_of) else ""
            return Finding(
                f"whether {_listed(others)} answer better than {reference}{on}{by}", shares_in_words(known, reference)
            )
    for metric in _measured(table):
        known = {model: bounds for model, line in table.items() if (bounds := _bounds(line, metric))}
        if known:
            best, *others = sorted(known, key=lambda model: -known[model][0])
            value, low, high = known[best]
            told = f"`{metric}` is{' highest for' if others else ''} {best}{':' if others else ''} {value:.2f} (95 % interval {low:.2f} to {high:.2f})"
            rest = [
                f"{model} {value:.2f} ({low:.2f} to {high:.2f})"
                for model in others
                for value, low, high in [known[model]]
            ]
            return Finding(
                f"how good {_listed(list(table))} are{on}", told + (f"; then {', '.join(rest)}" if rest else "")
            )
    return None


def shares_in_words(known: dict[str, tuple[float, float, float]], against: str) -> str:
    """Shares of comparisons, the greatest first: the words around a number are told once."""
    told: dict[str, list[str]] = {}
    for model, (value, low, high) in sorted(known.items(), key=lambda item: -item[1][0]):
        said = f"{value:.0%} ({'' if told else '95 % interval '}{low:.0%} to {high:.0%}){'' if told else ' of comparisons'}"
        verdict = _against_half(low, high)
        verb = "" if verdict in told else " win"
        told.setdefault(verdict, []).append(f"those of {model}{verb} {said}")
    return f"against the answers of {against}, " + "; ".join(
        f"{' and '.join(each)}, {verdict}" for verdict, each in told.items()
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _against_half(low: float, high: float) -> str:
    return (
        "more than chance explains"
        if low > 0.5
        else "less than an even share"
        if high < 0.5
        else "which chance may explain"
    )


def _bounds(line: dict[str, Any], metric: str) -> tuple[float, float, float] | None:
    found = [line.get(name) for name in (metric, f"{metric}_low", f"{metric}_high")]
    numbers = [float(one) for one in found if isinstance(one, int | float) and math.isfinite(one)]
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else None


def _measured(table: dict[str, dict[str, Any]]) -> list[str]:
    return [
        name.removesuffix("_low")
        for name in dict.fromkeys(n for line in table.values() for n in line)
        if name.endswith("_low")
    ]


def _preferred(stop: Stop, stops: Sequence[Stop]) -> Finding | None:
    """Whose answers annotators put first, where they saw those of several stages."""
    found = preferred(stop, stops)
    if not found or stop.artifact is None:
        return None
    kinds = annotators_of([stop.artifact])
    told = [
        f"against the answers of {one.worse}, those of {one.better} win {one.share.value:.0%} (95 % interval {one.share.low:.0%} to "
        f"{one.share.high:.0%}) of {one.comparisons:,} comparisons, {_against_half(one.share.low, one.share.high)}"
        for one in found
    ]
    names = list(dict.fromkeys(name for one in found for name in (one.better, one.worse)))
    by = _listed([_counted(kind, len(by_name)) for kind, by_name in kinds.items()])
    return Finding(f"whose answers {by} prefer: {_listed(names)}", "; ".join(told))


def _counted(kind: str, count: int) -> str:
    return f"{count} {ANNOTATORS.get(kind, (kind, kind))[count != 1]}"


def _labelling(artifact: Artifact) -> Finding | None:
    summary = artifact.manifest["summary"]
    agreement, people = summary.get("agreement"), summary.get("annotators")
    if artifact.kind != "Preference" or not isinstance(agreement, dict) or not isinstance(people, dict):
        return None
    given = [read_artifact(artifact.store, one["artifact"]) for one in artifact.manifest["inputs"].get("rankings", [])]
    known = annotators_of([one for one in given if one])
    kinds = Counter(next((kind for kind, names in known.items() if name in names), "person") for name in people)
    rankings = sum(one.get("rankings", 0) for one in people.values())
    alpha: dict[str, Any] = agreement.get("alpha") or {}
    bounds = _bounds({"a": alpha.get("value"), "a_low": alpha.get("low"), "a_high": alpha.get("high")}, "a")
    agree = (
        f"they agree with Krippendorff's alpha {bounds[0]:.2f} (95 % interval {bounds[1]:.2f} to {bounds[2]:.2f}; 1 is full agreement, 0 is chance)"
        if bounds
        else "no prompt was ranked by two of them, so that their agreement is not known"
    )
    who = _listed([_counted(kind, count) for kind, count in kinds.items()])
    return Finding(
        "how far those who judged agree",
        f"{who} gave {rankings:,} rankings, from which {artifact.rows:,} pairs were made; {agree}",
    )


def _judged(scores: Sequence[JudgeScore]) -> Finding | None:
    """The means that rules and judges gave, of the last stage that judged."""
    last = [one for one in scores if one.stage == scores[-1].stage]
    if not last:
        return None
    told: list[str] = []
    for one in last:
        form = ".0%" if one.share else ".2f"
        low, high = format(one.mean.low, form), format(one.mean.high, form)
        between = f"({'' if told else '95 % interval '}{low} to {high})"
        mean = f"{one.mean.value:.0%} {'are' if told else 'of the answers are'} `{one.metric}`" if one.share else f"`{one.metric}` is {one.mean.value:.2f} on average"  # fmt: skip
        told.append(f"{mean} {between}")
    whose = f" in {_listed([f'`{name}`' for name in last[0].judged])}" if last[0].judged else ""
    by = f" by {_listed(last[0].models)}" if last[0].models else ""
    asked = f"how good the {last[0].answers:,} answers{whose}{by} to {last[0].prompts:,} prompts are"
    return Finding(asked, _listed(told))


def _rows(stops: Sequence[Stop]) -> Finding | None:
    """What came out of stages that no other stage of the run took from, as rows, and how much each stage on the way to them kept."""
    ends = [(s, a) for s in stops if (a := s.artifact) and a.kind in DATASETS and s in _ends(stops)]
    ends = [(s, a) for s, a in ends if not (a.kind == "Preference" and _labelling(a))]  # told already
    if not ends:
        return None
    told = ", ".join(f"{a.rows:,} {IS.get(a.kind, f'rows of {a.kind}')} in `{s.name}`" for s, a in ends)
    kept = [
        f"`{s.name}` let {a.rows:,} of {a.rows + lost:,} rows through ({_share_kept(a, lost)})"
        for s in _way_to([s for s, _ in ends], stops)
        if (a := s.artifact) and a.kind in DATASETS and (lost := sum(a.manifest["rejected"].values()))
    ]
    kinds = sorted({IS.get(a.kind, f"rows of {a.kind}") for _, a in ends})
    return Finding(f"how many {_listed(kinds)} come out", "; ".join([told, *kept]))


def _share_kept(artifact: Artifact, lost: int) -> str:
    """With an interval where each row stands for itself; answers to one prompt resemble each other."""
    low, high = wilson(artifact.rows, artifact.rows + lost)
    between = f", 95 % interval {low:.1%} to {high:.1%}" if artifact.kind in ("Document", "Prompt") else ""
    return f"{artifact.rows / (artifact.rows + lost):.1%}{between}"


def _ends(stops: Sequence[Stop]) -> list[Stop]:
    """Stages that nothing else was made of: judging rows does not use them up, but those of an exam are no result."""
    used = {
        name
        for stop in stops
        for name in stop.inputs
        if not (
            stop.artifact and stop.artifact.kind == "Verdict" and "table.json" not in stop.artifact.manifest["files"]
        )
    }
    return [
        s for s in stops if s.name not in used and not (s.artifact and s.artifact.kind in ("Verdict", "TokenBlock"))
    ]


def _way_to(ends: Sequence[Stop], stops: Sequence[Stop]) -> list[Stop]:
    """These stages and all that they were made from, in the order of the run."""
    by_name = {stop.name: stop for stop in stops}
    names, todo = set[str](), [stop.name for stop in ends]
    while todo:
        name = todo.pop()
        if name in by_name and name not in names:
            names.add(name)
            todo += by_name[name].inputs
    return [stop for stop in stops if stop.name in names]


def last_rows(stops: Sequence[Stop], each: int = 4) -> list[tuple[Stop, list[dict[str, Any]]]]:
    """Some rows of the stages whose rows nothing else was made of, for runs that end in rows."""
    found: list[tuple[Stop, list[dict[str, Any]]]] = []
    for stop in _ends(stops):
        if stop.artifact and stop.artifact.kind in DATASETS:
            first = next(stop.artifact.batches(rows=1000), None)
            # Spread over the rows: those that stand beside each other are often about the same.
            places = sorted({i * len(first) // each for i in range(each)} - {len(first)}) if first is not None else []
            found.append((stop, first.take(places).to_pylist() if first is not None else []))
    return found


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927)."""
    p, z2 = hits / of, Z**2
    middle, half = p + z2 / (2 * of), Z * math.sqrt(p * (1 - p) / of + z2 / (4 * of**2))
    return (middle - half) / (1 + z2 / of), (middle + half) / (1 + z2 / of)
