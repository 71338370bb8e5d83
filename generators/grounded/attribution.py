"""What is measured of answers with citations: ALCE's citation recall and precision (Gao et al., 2023, arXiv:2305.14627, section 4),
faithfulness, refusals, and distractors that were cited.

    recall      share of an answer's statements that follow from all that they cite, taken together
    precision   share of its citations that are not in vain: their statement follows from all it cites, and this passage alone bears it
                out, or the others without it do not
    faithful    share of its statements that follow from any of the passages shown, cited or not (RAGAS; Es et al., 2023, arXiv:2309.15217)

Each answer gives a number or None where there is nothing to measure, so that means and their intervals are over answers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from generators.grounded.citations import Statement, statements
from generators.grounded.refusal import declines
from generators.grounded.support import Entails, support


@dataclass(frozen=True)
class Attribution:
    """Of one answer; each in [0, 1], or None where the answer has nothing of the kind.

    Attributes:
        resolved: share of its citations that are of a passage shown.
        distracted: whether it cites a passage that does not hold the answer; None where nobody says which do.
        refused: whether it says that the passages don't hold it. Such an answer makes no claims, and none are measured.
    """

    refused: bool
    statements: int
    recall: float | None
    precision: float | None
    faithful: float | None
    resolved: float | None
    distracted: bool | None


def by_reading(premise: str, statement: str) -> bool:
    """Entailment without a model (`support.py`)."""
    return bool(support(statement, [premise]))


def attribution(
    answer: str,
    passages: Sequence[str],
    gold: Collection[int] | None = None,
    entails: Entails = by_reading,
) -> Attribution:
    """What an answer's citations are worth.

    Args:
        passages: as shown: the first is [1].
        gold: numbers of those that hold the answer, from 1.
        entails: whether a statement follows from a premise; by reading, or by a model.
    """
    made = statements(answer)
    cited = [number for one in made for number in one.cited]
    resolved = [number for number in cited if 1 <= number <= len(passages)]
    share = len(resolved) / len(cited) if cited else None
    if declines(answer):
        return Attribution(True, 0, None, None, None, share, _distracted(resolved, gold))
    borne, worth, faithful = list[bool](), list[bool](), list[bool]()
    for one in made:
        shown = [number for number in one.cited if 1 <= number <= len(passages)]
        whole = bool(shown) and entails(_joined(passages, shown), one.text)
        borne.append(whole)
        worth += [whole and number in shown and _needed(one, number, shown, passages, entails) for number in one.cited]
        faithful.append(whole or entails("\n".join(passages), one.text))
    return Attribution(
        False, len(made), _mean(borne), _mean(worth), _mean(faithful), share, _distracted(resolved, gold)
    )


def _needed(one: Statement, number: int, shown: Sequence[int], passages: Sequence[str], entails: Entails) -> bool:
    """Whether a citation is not in vain, in a statement that follows from all it cites."""
    others = [other for other in shown if other != number]
    return entails(passages[number - 1], one.text) or not (others and entails(_joined(passages, others), one.text))


def _joined(passages: Sequence[str], numbers: Sequence[int]) -> str:
    return "\n".join(passages[number - 1] for number in numbers)


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _distracted(cited: Sequence[int], gold: Collection[int] | None) -> bool | None:
    return None if gold is None or not cited else any(number not in gold for number in cited)


@dataclass(frozen=True)
class Refusals:
    """Refusing as a decision: precision is the share of refusals that were due, recall the share of those due that were made; None where
    there are none."""

    precision: float | None
    recall: float | None


def refusals(refused: Sequence[bool], answerable: Sequence[bool]) -> Refusals:
    """How well answers tell what the documents hold from what they don't.

    Args:
        refused: of each answer. answerable: whether the documents hold its question's answer.
    """
    due = [not one for one in answerable]
    right = sum(a and b for a, b in zip(refused, due, strict=True))
    made, wanted = sum(refused), sum(due)
    return Refusals(right / made if made else None, right / wanted if wanted else None)
