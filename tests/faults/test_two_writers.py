"""Two writers of one artifact on S3 and a zombie that comes back, a few rounds; `make faults` does a hundred."""

from __future__ import annotations

from tests.faults.two_writers import rounds


def test_of_two_writers_on_s3_one_wins_and_nothing_is_corrupt() -> None:
    outcome = rounds(5)
    assert outcome.wrong == []
    assert outcome.rounds == 5 and outcome.refused + outcome.finished_first == 5 and outcome.refused
