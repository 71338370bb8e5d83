"""Citations of answers from the handbook in recipes/rag_or_finetune/: do the checks tell what a passage bears out from what it doesn't?

Every fact of the handbook is stated in other words than the page's, and cites the passage that holds it (supported). Then something is
planted: a number or a name is changed, a `not` put in, a unit changed; another fact's answer, another passage's number, last year's terms,
a sentence of another page. All labels follow from how a statement was made; nothing here uses the checks.

The least share of words (`COVERAGE`) was chosen on every other document in the order of their names; what is claimed is of the others.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import flywheel
from benchmarks.parts.claims import Claim, claim
from engine import seeds
from engine.statistics import bootstrap
from engine.text.words import words
from generators.grounded.citations import numbers_cited
from generators.grounded.retrieval import Passage, passages_of
from generators.grounded.support import COVERAGE, first_unsupported

HOME = Path(__file__).parents[2] / "recipes" / "rag_or_finetune"
WORDS, OVERLAP = 80, 15  # of a passage
PLANTED = 500
NUMBER = re.compile(r"(?<![\w:.,])\d+(?:[:.,]\d+)*(?![\w])")
UNITS = {
    "weeks": "days", "days": "weeks", "months": "weeks", "years": "months", "minutes": "hours", "hours": "minutes",
    "krone": "euros", "percent": "krone", "kilograms": "grams", "grams": "kilograms", "metres": "kilometres",
}  # fmt: skip


@dataclass(frozen=True)
class Labelled:
    """An answer of one statement that cites the first of its passages.

    Attributes:
        kind: how it was made. supported: whether the passage bears it out.
        document: where the fact stands, by name.
    """

    kind: str
    supported: bool
    document: str
    question: str
    statement: str
    passages: tuple[str, ...]

    @property
    def answer(self) -> str:
        return f"{self.statement.rstrip('.')} [1]."


def facts() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HOME / "facts.jsonl").read_text(encoding="utf-8").splitlines()]


def pages(year: str) -> dict[str, list[Passage]]:
    """The handbook of a year, in passages by document."""
    files = sorted([*HOME.glob("pages/*.md"), *HOME.glob(f"{year}/*.md")])
    return {file.stem: passages_of(file.stem, file.read_text(encoding="utf-8"), WORDS, OVERLAP) for file in files}


def holds(passage: str, value: str) -> bool:
    spelled = re.escape(value).replace(r"\ ", r"\s+")
    return re.search(rf"(?<![\w:.,]){spelled}s?(?!\w|[:.,]\d)", passage) is not None


def home_of(statement: str, answer: str, passages: list[Passage]) -> Passage:
    """The passage of a document that holds the answer and has the most words in common with its statement."""
    wanted = set(words(statement))
    return max((one for one in passages if holds(one.text, answer)), key=lambda one: len(wanted & set(words(one.text))))


def labelled() -> list[Labelled]:
    """All statements, in the order of the facts."""
    before, after, known = pages("2026"), pages("2027"), facts()
    return [one for place, fact in enumerate(known) for one in _of_fact(place, fact, known, before, after)]


def _of_fact(
    place: int, fact: dict[str, Any], known: list[dict[str, Any]], before: dict[str, list[Passage]], after: dict[str, list[Passage]]
) -> Iterator[Labelled]:  # fmt: skip
    random = seeds.generator(18, "citations", place)
    document, said, answer = fact["document"], fact["statement"], fact["answer"]
    own = home_of(said, answer, before[document])

    def made(kind: str, supported: bool, statement: str, passage: str = own.text) -> Labelled:
        return Labelled(kind, supported, document, fact["question"], statement, (passage,))

    yield made("fact in other words", True, said)
    verbatim = [s for s in re.findall(r"[A-Z][^.!?\n|#]{40,}[.]", own.text) if len(words(s)) > 6]
    if verbatim:
        yield made("sentence of the page", True, str(verbatim[int(random.integers(len(verbatim)))]))
    if fact["changed"]:
        late = home_of(fact["statement_changed"], fact["changed"], after[document])
        yield made("fact in other words", True, fact["statement_changed"], late.text)
        yield made("last year's terms", False, said, late.text)
        yield made("next year's terms", False, fact["statement_changed"])
    numbers, kind = NUMBER.fullmatch(answer) is not None, _kind(answer)
    if numbers:
        for other in _other_numbers(answer, own.text, random):
            yield made("number changed", False, said.replace(answer, other))
    others = [one["answer"] for one in known if _kind(one["answer"]) == kind and not holds(own.text, one["answer"])]
    for i in random.permutation(len(others))[:2]:
        yield made("another fact's answer", False, said.replace(answer, others[i]))
    if re.search(r" (is|are|has|have|can|may) ", said):
        yield made("`not` put in", False, re.sub(r" (is|are|has|have|can|may) ", r" \1 not ", said, count=1))
    for unit, other in UNITS.items():
        if numbers and re.search(rf"{re.escape(answer)} {unit}\b", said):
            yield made("unit changed", False, said.replace(f"{answer} {unit}", f"{answer} {other}"))
    strangers = [
        one for name in sorted(before) if name != document for one in before[name] if not holds(one.text, answer)
    ]
    for i in random.permutation(len(strangers))[:2]:
        yield made("another passage cited", False, said, strangers[i].text)
    foreign = [one for one in known if one["document"] != document and not holds(own.text, one["answer"])]
    yield made("sentence of another page", False, foreign[int(random.integers(len(foreign)))]["statement"])


def _kind(answer: str) -> str:
    for kind, pattern in (("time", r"\d+:\d+"), ("number", r"[\d.,]+"), ("date", r"\d+th"), ("name", r"[A-Z].*")):
        if re.fullmatch(pattern, answer):
            return kind
    return "word"


def _other_numbers(answer: str, passage: str, random: Any) -> list[str]:
    """Two numbers near this one that the passage doesn't have."""
    if ":" in answer:
        hour, minute = answer.split(":")
        tries = [f"{(int(hour) + step) % 24}:{minute}" for step in (1, 2, 3, 5)]
    elif "." in answer:
        tries = [f"{float(answer) + step:.2f}" for step in (0.03, 0.1, 0.21)]
    else:
        value = int(answer.replace(",", ""))
        tries = [f"{value + step:,}" if "," in answer else str(value + step) for step in (1, 2, 3, 5, 7, 10, 20)]
    free = [one for one in tries if not holds(passage, one)]
    return [free[i] for i in random.permutation(len(free))[:2]]


def told_half(rows: list[Labelled]) -> list[Labelled]:
    """Those of every second document: nothing was chosen by them."""
    names = sorted({one.document for one in rows})
    return [one for one in rows if names.index(one.document) % 2]


def passes(one: Labelled, coverage: float = COVERAGE) -> bool:
    return bool(first_unsupported(one.answer, one.passages, one.question, coverage))


def agreement(rows: list[Labelled], coverage: float = COVERAGE) -> dict[str, Any]:
    """How far the checks agree with the labels, with 95 % intervals over documents."""
    verdicts = [passes(one, coverage) for one in rows]

    def share(supported: bool) -> dict[str, float | int]:
        mine = [(one, verdict) for one, verdict in zip(rows, verdicts, strict=True) if one.supported == supported]
        right = [float(verdict == supported) for _, verdict in mine]
        # The share over all statements; resampled by document, since those of one page are of one hand.
        found = bootstrap.statistic(
            [one.document for one, _ in mine], lambda picked: float(sum(right[i] for i in picked) / len(picked)), 18
        )
        return {
            "n": len(mine),
            "value": round(found.value, 4),
            "low": round(found.low, 4),
            "high": round(found.high, 4),
        }

    def kappa(picked: Any) -> float:
        pairs = [(rows[i].supported, verdicts[i]) for i in picked]
        n = len(pairs)
        observed = sum(a == b for a, b in pairs) / n
        a, b = sum(a for a, _ in pairs) / n, sum(b for _, b in pairs) / n
        chance = a * b + (1 - a) * (1 - b)
        return (observed - chance) / (1 - chance) if chance < 1 else 1.0

    cohen = bootstrap.statistic([one.document for one in rows], kappa, 18)
    by_kind: dict[str, list[bool]] = {}
    for one, verdict in zip(rows, verdicts, strict=True):
        by_kind.setdefault(one.kind, []).append(verdict == one.supported)
    return {
        "rejected": share(False), "passed": share(True),
        "kappa": {"value": round(cohen.value, 4), "low": round(cohen.low, 4), "high": round(cohen.high, 4)},
        "right_by_kind": {kind: f"{sum(right)} of {len(right)}" for kind, right in sorted(by_kind.items())},
    }  # fmt: skip


RECIPE = """
name: cited
stages:
  pages: {kind: read, paths: [pages, '2026']}
  facts: {kind: read, paths: [facts.jsonl], text: "{{ statement }}"}
  asked:
    kind: instructions
    from: {records: facts}
    questions: ["{{ question }}"]
    answers: ["{{ statement }}"]
    reference: "{{ answer }}"
  made: {kind: grounded_qa, from: {documents: pages, questions: asked}, words: 80, overlap: 15}
"""


def resolution() -> dict[str, Any]:
    """Questions of the handbook made into rows that cite: how many citations lead to the bytes of a file that are the passage shown."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(HOME, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "cited.yaml").write_text(RECIPE)
        with patch.dict(os.environ, {"FLYWHEEL_STORE": str(folder / "store")}):
            made = flywheel.run(folder / "cited.yaml")["made"]
        rows = made.to_table().to_pylist()
        files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.md")}
        cited = resolved = 0
        for row in rows:
            places = json.loads(row["metadata"])["passages"]
            for number in numbers_cited(row["messages"][-1]["content"]):
                cited += 1
                if not 1 <= number <= len(places):
                    continue
                place, passage = places[number - 1], row["passages"][number - 1]
                data = next((text for name, text in files.items() if name.endswith(place["source"])), b"")
                begin = place["offset"] + place["start"]
                resolved += data[begin : begin + place["end"] - place["start"]].decode("utf-8", "replace") == passage
    return {
        "rows": len(rows),
        "of": len(facts()),
        "citations": cited,
        "resolved": resolved,
        "lost": made.manifest["rejected"],
    }


def claims() -> list[Claim]:
    """What the benchmark of grounding says about citations."""
    found = resolution()
    everything = labelled()
    rows = told_half(everything)
    told, chosen = agreement(rows), agreement([one for one in everything if one not in rows])
    rejected, passed = told["rejected"], told["passed"]
    return [
        claim("citations that resolve to text that is there", found, "all", 0 < found["citations"] == found["resolved"]),
        claim("planted unsupported answers rejected, on pages that nothing was chosen by", rejected, f">= 0.95 of {PLANTED}",
              rejected["value"] >= 0.95 and rejected["n"] >= PLANTED, kinds=told["right_by_kind"], on_the_other_pages=chosen["rejected"]),
        claim("supported answers passed, on the same pages", passed, ">= 0.95", passed["value"] >= 0.95, on_the_other_pages=chosen["passed"]),
        claim("agreement of the checks with the labels (Cohen's kappa)", told["kappa"], "told", True, on_the_other_pages=chosen["kappa"]),
    ]  # fmt: skip
