"""What to change where drafts come to nothing: one sentence for each reason that most of them have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

STRONGER = "The model writes nothing that can be used: take a stronger one, or a lower `temperature`."
ADVICE = {
    "no_news": "The model itself says that its rewriting says the same: take a stronger one, a higher `temperature`, or "
    "other `operations`.",
    "too_hard": "The model can't answer what it wrote: take fewer `generations`, or a stronger model.",
    "copies_the_prompt": "The model copies its prompt: take a stronger one.",
    "cut_off": "Raise `max_tokens`.",
    "empty_answer": "Raise `max_tokens`.",
    "not_novel": "Give more seeds, a higher `temperature`, or a looser `novelty`.",
    "invalid_json": "Take a model or server that keeps to a JSON Schema, or raise `max_tokens`.",
    "refusal": "The model refuses: look at the seeds, or take another one.",
    "content_filter": "The server's filter holds answers back: look at the seeds, or take another server.",
    "tests_failed": "Raise `samples`, or take a stronger model.",
    "no_majority": "Raise `votes`, lower `majority`, or take a stronger model.",
    **dict.fromkeys(("empty", "no_content", "echo", "loop", "says_nothing", "unparsable"), STRONGER),
}


def advice(reasons: Mapping[str, int], scores: Mapping[int, int], threshold: int | None = None) -> str:
    """What to change, for the two most frequent reasons that have an answer.

    Args:
        reasons: reason -> drafts. scores: score -> drafts. threshold: the least score that was kept.
    """
    told = list[str]()
    if reasons.get("low_score") and scores:
        lower = max((score for score in scores if threshold is None or score < threshold), default=None)
        kept = sum(times for score, times in scores.items() if lower is not None and score >= lower)
        spread = ", ".join(f"{score} ({times})" for score, times in sorted(scores.items()))
        told.append(
            f"Scores, and how many drafts got each: {spread}; `threshold: {lower}` would have kept {kept} of "
            f"{sum(scores.values())}."
        )
    told += dict.fromkeys(ADVICE[reason] for reason, _ in Counter(reasons).most_common() if reason in ADVICE)
    return " ".join(told[:2])
