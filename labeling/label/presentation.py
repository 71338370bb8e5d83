"""What annotators see: which answers to a prompt, in which order, and among them attention checks.

Everything is derived from the stage's seed and ids, so that a run that goes on shows what the killed one did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine import seeds
from engine.store.schema import messages_digest, row_id
from labeling.tool.task import RankingRecord


@dataclass(frozen=True)
class Presentation:
    """The answers to one prompt, in the order in which annotators see them.

    Attributes:
        key: names the record; another set of answers, or another order, is another record.
        candidates: rows, as shown.
        worth: of each answer to scripted annotators; None where no verdict tells.
        planted: id of the candidate that answers another prompt: an attention check. None in a real question.
        suggested: ranks that the form is filled with.
    """

    key: str
    prompt_id: str
    prompt: list[dict[str, str]]
    candidates: list[dict[str, Any]]
    worth: list[float | None]
    planted: str | None = None
    suggested: list[int] | None = None

    @property
    def texts(self) -> list[str]:
        return [text_of(row) for row in self.candidates]

    def record(self) -> RankingRecord:
        return RankingRecord(self.key, self.prompt, self.texts, suggested=self.suggested)

    def for_annotator(self, name: str, seed: int) -> Presentation:
        """The same answers in an order of this annotator's own."""
        order = seeds.shuffled(range(len(self.candidates)), seed, "shown", name, self.key)
        return replace(
            self,
            key=row_id("Shown", self.key, name),
            candidates=[self.candidates[i] for i in order],
            worth=[self.worth[i] for i in order],
            suggested=None if self.suggested is None else [self.suggested[i] for i in order],
        )


def text_of(candidate: dict[str, Any]) -> str:
    return candidate["completion"][-1]["content"]


def presentations(
    candidates: Sequence[dict[str, Any]], answers: int, seed: int, worth: Mapping[str, float]
) -> tuple[list[Presentation], list[dict[str, Any]]]:
    """Up to `answers` different answers to every prompt, shuffled; and the prompts that have no two, as rejected rows.

    Args:
        candidates: Candidate rows, in any order.
        worth: candidate id -> utility, for scripted annotators.
    """
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in candidates:
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    made: list[Presentation] = []
    rejected: list[dict[str, Any]] = []
    for prompt_id, rows in sorted(by_prompt.items()):
        different = {text_of(row): row for row in sorted(rows, key=lambda r: r["id"], reverse=True)}
        picked = seeds.shuffled(sorted(different.values(), key=lambda r: r["id"]), seed, "shown", prompt_id)[:answers]
        if len(picked) < 2:
            rejected.append({"id": prompt_id, "reason": "one_answer", "detail": f"{len(rows)} samples, all the same"})
            continue
        key = row_id("Shown", prompt_id, *(row["id"] for row in picked))
        made.append(Presentation(key, prompt_id, picked[0]["prompt"], picked, [worth.get(row["id"]) for row in picked]))
    return made, rejected


def attention_checks(shown: Sequence[Presentation], share: float, seed: int) -> list[Presentation]:
    """For a share of the prompts, the same question once more with one answer swapped for another prompt's.

    Whoever reads sees that it does not belong; whoever doesn't ranks it as any other. The planted answer comes from a
    prompt of another text whose reference differs, where there is one, and says what no answer to this prompt says.
    Prompts for which no such answer exists get no check.
    """
    checks: list[Presentation] = []
    wanted = round(share * len(shown))
    floor = min((w for s in shown for w in s.worth if w is not None), default=None)
    donors = seeds.shuffled(sorted(shown, key=lambda s: s.key), seed, "attention", "donors")
    for own in seeds.shuffled(sorted(shown, key=lambda s: s.key), seed, "attention"):
        if len(checks) == wanted:
            break
        texts, question = set(own.texts), messages_digest(own.prompt)
        reference = own.candidates[0].get("reference")
        start = seeds.derive(seed, "attention", own.key) % len(donors)
        for donor in (*donors[start:], *donors[:start]):
            row = donor.candidates[0]
            unlike = reference is None or row.get("reference") != reference
            if messages_digest(donor.prompt) != question and unlike and text_of(row) not in texts:
                place = seeds.derive(seed, "attention", "place", own.key) % len(own.candidates)
                rows = [*own.candidates[:place], row, *own.candidates[place + 1 :]]
                worth = list(own.worth)
                worth[place] = None if floor is None else floor - 3.0  # what reads as off the point is worth least
                key = row_id("Attention", own.key, row["id"])
                checks.append(Presentation(key, own.prompt_id, own.prompt, rows, worth, planted=row["id"]))
                break
    return checks
