"""What a card tells beside where something came from: columns, agreement of those who judged, costs, and limits that follow from how it was made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from engine.store.artifact import Artifact
from engine.store.schema import DATASETS
from engine.store.store import Store
from engine.text.markdown import code, plain
from engine.view.spending import in_words, spending

Line = Sequence[tuple[str, dict[str, Any], str]]  # an artifact and all it was made from: id, manifest, licence

IS = {
    "Document": "texts",
    "Prompt": "questions, with a known answer where there is one",
    "Conversation": "conversations to fine-tune on",
    "Candidate": "answers that were sampled from models",
    "Ranking": "rankings of answers, each of one annotator",
    "Preference": "pairs of answers to a prompt, the preferred one first",
    "Verdict": "measurements of answers",
    "TokenBlock": "token ids, packed",
    "Model": "a language model",
    "Adapter": "an adapter of a language model",
    "RewardModel": "a reward model: it scores answers as those who judged would",
}
COLUMNS = {
    "id": "digest of content and origin",
    "parents": "ids of the rows it was made from",
    "text": "the text",
    "source": "file, or generator, that it comes from",
    "offset": "where in it the text starts, in bytes (or rows)",
    "metadata": "what else was there, as JSON",
    "prompt": "what was asked, as messages",
    "messages": "the conversation",
    "reference": "a known right answer",
    "prompt_id": "which rows answer the same prompt",
    "completion": "the answer, as messages",
    "prompt_token_ids": "the prompt's token ids",
    "token_ids": "the answer's token ids, as they were sampled",
    "logprobs": "log-probability of each sampled token (natural logarithm)",
    "finish_reason": "stop, or length where it was cut",
    "model": "who answered, or was judged",
    "sampling": "how it was drawn, as JSON",
    "seed": "of the draw",
    "sample": "number of the answer to its prompt, from 0",
    "candidates": "ids of the answers that were ranked",
    "completions": "texts of the answers that were ranked",
    "ranks": "1 is best, equal ranks are ties, null is not ranked",
    "shown": "position (from 0) at which the annotator saw each answer",
    "annotator": "who judged",
    "annotator_kind": "person, scripted or judge (a model)",
    "correction": "a better answer, by the annotator",
    "flags": "what the annotator ticked",
    "chosen": "the preferred answer, as messages",
    "rejected": "the other answer, as messages",
    "chosen_id": "id of the preferred answer",
    "rejected_id": "id of the other answer",
    "margin": "difference of the two utilities, in log-odds",
    "agreement": "share of the annotators with an opinion who preferred `chosen`",
    "annotators": "how many had an opinion",
    "split": "train or validation; no prompt is in both",
    "subject": "id of the row that was judged",
    "metric": "what was measured",
    "value": "the measurement",
    "tokens": "token ids",
    "starts": "offsets at which a document begins",
}


def columns(artifact: Artifact) -> Iterator[str]:
    """A table of the columns, those beside the schema's, too."""
    if artifact.kind not in DATASETS:
        return
    batch = next(artifact.batches(rows=1), None)
    fields = list(batch.schema if batch is not None else DATASETS[artifact.kind])
    yield from ("## Columns", "", "| column | type | |", "|---|---|---|")
    for field in fields:
        yield f"| {code(field.name, cell=True)} | {plain(_type(field.type))} | {plain(COLUMNS.get(field.name, ''))} |"
    yield ""


def _type(form: Any) -> str:
    told = str(form)
    return "list of messages (role, content)" if told.startswith("list<") and "role: string" in told else told


def agreement(store: Store, artifact: Artifact, line: Line) -> Iterator[str]:
    """Who judged, and how far they agree."""
    judged: Counter[tuple[str, str]] = Counter()
    for id, manifest, _ in line:
        if manifest["schema"] == "Ranking" and (found := store.get(id)):
            rows = found.to_table(["annotator", "annotator_kind"]).to_pylist()
            judged.update((row["annotator_kind"] or "person", row["annotator"]) for row in rows)
    pairs = [found for id, manifest, _ in line if manifest["schema"] == "Preference" and (found := store.get(id))]
    if not judged and not pairs:
        return
    yield from ("## Who judged", "")
    kinds = Counter(kind for kind, _ in judged)
    if judged:
        told = ", ".join(f"{count} {plain(_annotators(kind, count))}" for kind, count in sorted(kinds.items()))
        yield f"{told}; {judged.total():,} judgements."
    for one in pairs[:1]:
        from engine.statistics import bootstrap

        rows = one.to_table(["prompt_id", "agreement", "annotators"]).to_pylist()
        several = [row for row in rows if row["agreement"] is not None and (row["annotators"] or 0) > 1]
        if several:
            told = bootstrap.mean(
                [row["agreement"] for row in several], [str(row["prompt_id"]) for row in several], one.id
            )
            yield (
                f"Of {len(several):,} pairs that several judged, {told.value:.0%} of those with an opinion preferred the chosen answer on "
                f"average (95 % interval {told.low:.0%} to {told.high:.0%}, over prompts)."
            )
        else:
            yield "No pair was judged by several, so that nobody can tell how far they would agree."
    yield ""


def _annotators(kind: str, count: int) -> str:
    names = {
        "person": ("person", "people"),
        "scripted": ("scripted annotator", "scripted annotators"),
        "judge": ("model as judge", "models as judges"),
    }
    one, many = names.get(kind, (kind, kind))
    return one if count == 1 else many


def costs(store: Store, line: Line) -> Iterator[str]:
    """What making it took, all that it rests on together."""
    artifacts = [Artifact(store, id, manifest) for id, manifest, _ in line]
    seconds = sum(manifest["timings"].get("wall_s", 0) for _, manifest, _ in line)
    cpu = sum(manifest["timings"].get("cpu_s", 0) for _, manifest, _ in line)
    machines = sorted(
        {str(manifest["timings"]["machine"]) for _, manifest, _ in line if "machine" in manifest["timings"]}
    )
    spent = spending(artifacts)
    if not seconds:
        return
    yield from ("## What it took", "")
    yield f"{seconds:,.0f} s of work, {cpu:,.0f} of them of processors, on {plain('; '.join(machines) or 'an unknown machine')}."
    if spent:
        yield f"Models that were asked: {plain(in_words(spent))}."
    yield ""


def limits(artifact: Artifact, line: Line, unstated: bool) -> Iterator[str]:
    """What follows from how it was made, and whoever uses it should know."""
    manifests = [manifest for _, manifest, _ in line]
    kinds = {manifest["stage"]["kind"] for manifest in manifests}
    told: list[str] = []
    writers = sorted({str(name) for m in manifests for name in m["summary"].get("models") or {}})
    if writers:
        told.append(
            f"Models wrote part of it ({plain(', '.join(writers[:5]))}): what they get wrong, leave out or prefer is in it."
        )
    if any(m["summary"].get("scripted") is True for m in manifests):
        told.append("Scripted annotators stood in for people: their preferences are a formula, and nobody's.")
    if any(m["schema"] == "Ranking" and m["summary"].get("judges") for m in manifests):
        told.append("A model judged in place of people.")
    if not kinds & {"decontaminate", "contamination"}:
        told.append("Nobody looked whether rows of evaluations stand in it.")
    if unstated:
        told.append("The licence of a source is not stated.")
    if artifact.manifest["kind"] == "model":
        told.append("One run with one seed: another seed gives another model, and other numbers.")
    lost = sum(artifact.manifest["rejected"].values())
    if lost:
        told.append(f"{lost:,} rows were left out; what they have in common is missing here.")
    yield from (
        "## Limits",
        "",
        *(f"- {one}" for one in told),
        "- Nothing here was looked at for what harms or offends.",
        "",
    )
