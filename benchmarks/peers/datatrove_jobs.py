"""datatrove's jobs over several processes, as its documentation shows them: run by `benchmarks.scale` in an environment of its own.

    python datatrove_jobs.py JOB FOLDER-OF-JSONL OUT WORKERS

`near_duplicates`: its four steps (word 5-grams, 14 buckets of 8 hashes); `filter`: Gopher's rules on repetition and quality. A task a
file where a step can be cut by files. Both read JSON lines and write what is kept.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor  # pyright: ignore[reportMissingImports]
from datatrove.pipeline.readers import JsonlReader  # pyright: ignore[reportMissingImports]
from datatrove.pipeline.writers import JsonlWriter  # pyright: ignore[reportMissingImports]


def near_duplicates(home: Path, reader: Any, files: int) -> list[tuple[list[Any], int]]:
    from datatrove.pipeline.dedup import (  # pyright: ignore[reportMissingImports]
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig  # pyright: ignore[reportMissingImports]

    config: Any = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    signatures, buckets, remove = (str(home / name) for name in ("signatures", "buckets", "remove"))
    return [
        ([reader, MinhashDedupSignature(output_folder=signatures, config=config)], files),
        ([MinhashDedupBuckets(signatures, buckets, config=config)], 14),
        ([MinhashDedupCluster(buckets, remove, config=config)], 1),
        ([reader, MinhashDedupFilter(remove), JsonlWriter(str(home / "kept"))], files),
    ]


def gopher(home: Path, reader: Any, files: int) -> list[tuple[list[Any], int]]:
    from datatrove.pipeline.filters import (  # pyright: ignore[reportMissingImports]
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    return [([reader, GopherQualityFilter(), GopherRepetitionFilter(), JsonlWriter(str(home / "kept"))], files)]


JOBS = {"near_duplicates": near_duplicates, "filter": gopher}


def main() -> None:
    name, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    workers = int(sys.argv[4])
    files = len(list(source.glob("*.jsonl")))
    reader: Any = JsonlReader(str(source), glob_pattern="*.jsonl")
    for number, (pipeline, tasks) in enumerate(JOBS[name](out, reader, files)):
        logs = str(out / f"logs-{number}")
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=min(workers, tasks), logging_dir=logs).run()
    (out / "told.json").write_text(json.dumps({"version": version("datatrove")}))


if __name__ == "__main__":
    main()
