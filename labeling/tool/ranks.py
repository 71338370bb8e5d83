"""How ranks are read off what people answer, whatever tool they answer in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from labeling.tool.task import RankingTask

TIE = "tie"


def ranks_of_pair(better: str | None) -> tuple[int | None, ...]:
    """Of the answers `a` and `b`: which is better, or TIE; None where nobody said."""
    return {None: (None, None), "a": (1, 2), "b": (2, 1), TIE: (1, 1)}[better]


def better_of_pair(task: RankingTask, ranks: Sequence[int | None]) -> str | None:
    """The inverse of `ranks_of_pair`."""
    if None in ranks:
        return None
    first, second = ranks
    return TIE if first == second else task.labels[first > second]  # pyright: ignore


def ranks_of_ratings(ratings: Mapping[str, Sequence[int | None]]) -> tuple[int | None, ...]:
    """By the sum over aspects; None for an answer of which one is open."""
    sums = [None if None in own else sum(own) for own in zip(*ratings.values(), strict=True)]  # pyright: ignore
    return tuple(None if s is None else 1 + sum(t is not None and t > s for t in sums) for s in sums)


def ranks_of_top(task: RankingTask, ranks: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """The ranks of a task that may ask for the best few alone.

    One rank below the top for all the rest says nothing of them; who told them apart is heard.
    """
    if task.top is not None:
        rest = {rank for rank in ranks if rank is not None and rank > task.top}
        if len(rest) == 1 and any(rank is not None and rank <= task.top for rank in ranks):
            return tuple(None if rank in rest else rank for rank in ranks)
    return ranks


def ranks_to_top(task: RankingTask, ranks: Sequence[int | None]) -> list[int | None]:
    """What is submitted for ranks, of which those that are not among the best are None."""
    return [task.top + 1 if rank is None and task.top is not None else rank for rank in ranks]
