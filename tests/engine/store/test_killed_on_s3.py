"""The short form of `benchmarks.parts.on_s3`: stages that cost nothing, and kills at points of the server's count."""

from __future__ import annotations

from pathlib import Path

from benchmarks.parts.on_s3 import Point, at, digests, server, storm
from engine.store.store import Store


def test_a_run_that_is_killed_and_continued_ends_with_the_digests_of_one_on_disk(
    recipe: Path, run_store: Store, tmp_path: Path
) -> None:
    with server(tmp_path / "server") as s3:
        points = [Point(9, 1, late=True, victims="both"), Point(20, 0, late=False, victims="stage")]
        requests, problems = storm(s3, recipe, "storm", points)
        with at(s3.environment(tmp_path / "scratch-storm")):
            left = Store(s3.url("storm"))
            assert not problems and digests(left.url) == digests(run_store.url)
            assert left.entries("leases") == {} == left.entries("work")
    assert requests["PUT"] > 25 and requests.get("HEAD", 0) < 5
