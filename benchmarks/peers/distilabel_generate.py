"""distilabel as its documentation shows it: texts for prompts, from an OpenAI-compatible server.

    python distilabel_generate.py URL PROMPTS.json OUT.json

Run by `benchmarks.generation` in an environment of its own. Writes how many rows came back and the seconds `run` took.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    from distilabel.models import OpenAILLM  # pyright: ignore[reportMissingImports]
    from distilabel.pipeline import Pipeline  # pyright: ignore[reportMissingImports]
    from distilabel.steps import LoadDataFromDicts  # pyright: ignore[reportMissingImports]
    from distilabel.steps.tasks import TextGeneration  # pyright: ignore[reportMissingImports]

    url, prompts, out = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
    with Pipeline(name="peer") as pipeline:
        load = LoadDataFromDicts(data=[{"instruction": text} for text in prompts], batch_size=512)
        llm = OpenAILLM(
            model="m", base_url=url, api_key="none", generation_kwargs={"max_new_tokens": 64, "temperature": 1.0}
        )
        generate = TextGeneration(llm=llm, input_batch_size=512)
        load.connect(generate)
    started = time.perf_counter()
    made = pipeline.run(use_cache=False)
    seconds = time.perf_counter() - started
    rows = [row["generation"] for row in made["default"]["train"]]
    told = {"rows": sum(row is not None for row in rows), "seconds": seconds, "version": version("distilabel")}
    out.write_text(json.dumps(told))


if __name__ == "__main__":
    main()
