"""Scripted annotators: stand-ins for people in tests and the quickstart, never to be taken for people.

Each has known utilities and stated faults (noise, position bias, length bias), and works through the same
server as a person, as a user of its own whose name starts with `scripted-`. What it answers is a pure
function of its seed and the record, so a run that was killed and continued gives the same rankings as one
that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

from engine.errors import UserError
from labeling.tool.annotation_tool import AnnotationTool
from labeling.tool.task import RATINGS, Annotator, Dataset, Prompt, RankingTask, RecordView, Submission

PREFIX = "scripted-"
_SUBMIT_EVERY = 20


@dataclass(frozen=True)
class ScriptedAnnotator:
    """How one stand-in judges.

    utility: the worth of an answer to a prompt, as a function or a table by answer text.
    noise: scale of the Gumbel noise on every utility, so that rankings follow Plackett-Luce with strengths
        exp(utility / noise) (Yellott 1977). 0 is without fault.
    position_bias: what the first answer shown gains over the last, linearly in between.
    length_bias: what an answer gains by being twice as long as the mean of its record.
    tie_margin: answers this close to the best of their group are called equal.
    """

    name: str
    utility: Callable[[Prompt, str], float] | Mapping[str, float]
    noise: float = 0.0
    position_bias: float = 0.0
    length_bias: float = 0.0
    tie_margin: float = 0.0
    seed: int = 0

    @property
    def username(self) -> str:
        return username_of(self.name)


def username_of(name: str) -> str:
    """The user that a scripted annotator works as."""
    return name if name.startswith(PREFIX) else f"{PREFIX}{name}"


def rank(annotator: ScriptedAnnotator, prompt: Prompt, answers: Sequence[str], seed: str) -> tuple[int, ...]:
    """Ranks of the answers in the order given: 1 is best, equal answers share a rank (1, 2, 2, 4).

    `seed` names the occasion (a record's external id). The noise belongs to the answer's text, not to its
    position: without position bias, showing the answers in another order changes nothing.
    """
    scores = [
        _utility(annotator, prompt, answer)
        + annotator.noise * _gumbel(f"{annotator.seed}\0{annotator.username}\0{seed}\0{answer}")
        + annotator.position_bias * (1 - position / max(len(answers) - 1, 1))
        + annotator.length_bias * _doublings(answer, answers)
        for position, answer in enumerate(answers)
    ]
    ranks = [0] * len(answers)
    best_of_group = math.inf
    group_rank = 0
    for place, index in enumerate(sorted(range(len(answers)), key=lambda i: -scores[i]), start=1):
        if place == 1 or best_of_group - scores[index] > annotator.tie_margin:
            best_of_group, group_rank = scores[index], place
        ranks[index] = group_rank
    return tuple(ranks)


def annotators_of(usernames: Sequence[str], external_id: str, per_record: int) -> list[str]:
    """The annotators that judge a record: the same whatever the order of work (rendezvous hashing)."""
    return sorted(usernames, key=lambda name: _digest(f"{name}\0{external_id}"))[:per_record]


def annotate(
    client: AnnotationTool,
    dataset: Dataset,
    annotators: Sequence[ScriptedAnnotator],
    *,
    per_record: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> int:
    """Let every annotator judge its share of the dataset, all at once; the number of rankings submitted.

    A record goes to `per_record` annotators (the task's `min_submitted` if not given). What a user has
    already answered is left alone. Outlives restarts of the server for as long as the client is patient.
    """
    wanted = per_record or dataset.task.min_submitted
    usernames = [annotator.username for annotator in annotators]
    if len(set(usernames)) < len(usernames):
        raise UserError(f"Two scripted annotators share a name: {sorted(usernames)}.")
    if wanted > len(annotators):
        raise UserError(
            f"{wanted} judgements a record are wanted, from {len(annotators)} scripted annotators:"
            " add annotators or lower the number."
        )
    users = client.ensure_users(usernames, dataset.task.workspace)

    def work(annotator: ScriptedAnnotator, user: Annotator) -> int:
        own = client.as_user(user)
        try:
            return _judge(own, dataset, annotator, usernames, wanted, on_progress)
        finally:
            own.close()

    with ThreadPoolExecutor(max_workers=len(annotators), thread_name_prefix=PREFIX) as pool:
        return sum(pool.map(work, annotators, users))


def _judge(
    client: AnnotationTool,
    dataset: Dataset,
    annotator: ScriptedAnnotator,
    usernames: Sequence[str],
    per_record: int,
    on_progress: Callable[[int], None] | None,
) -> int:
    todo = (
        record
        for record in client.records(dataset)
        if not record.answered and annotator.username in annotators_of(usernames, record.external_id, per_record)
    )
    count = 0
    while batch := list(islice(todo, _SUBMIT_EVERY)):
        client.submit(dataset, [_submission(annotator, record, dataset.task) for record in batch])
        count += len(batch)
        if on_progress is not None:
            on_progress(len(batch))
    return count


def _submission(annotator: ScriptedAnnotator, record: RecordView, task: RankingTask) -> Submission:
    ranks = rank(annotator, record.prompt, record.answers, record.external_id)
    # Where ratings are asked for, too: the best gets the best, one less for every place below, in every aspect.
    rated = [max(RATINGS[0], RATINGS[-1] + 1 - r) for r in ranks]
    if task.top is not None:
        ranks = tuple(min(r, task.top + 1) for r in ranks)
    return Submission(record.id, ranks, ratings=dict.fromkeys(task.aspects, rated))


def _utility(annotator: ScriptedAnnotator, prompt: Prompt, answer: str) -> float:
    if isinstance(annotator.utility, Mapping):
        if answer not in annotator.utility:
            raise UserError(f"Scripted annotator {annotator.name!r} has no utility for the answer {answer[:80]!r}.")
        return annotator.utility[answer]
    return float(annotator.utility(prompt, answer))


def _doublings(answer: str, answers: Sequence[str]) -> float:
    mean = sum(map(len, answers)) / len(answers)
    return math.log2(max(len(answer), 1) / max(mean, 1))


def _gumbel(key: str) -> float:
    """A standard Gumbel variate, drawn from a digest."""
    uniform = (_digest(key) + 0.5) / 2**64  # strictly between 0 and 1
    return -math.log(-math.log(uniform))


def _digest(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest(), "big")
