"""Documents that answer: what retrieval finds, what it costs, and what citations are worth.

make weights                                          # MiniLM, which the best way to search needs, and the model that answers
python -m benchmarks.grounding --json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from typing import Any

from benchmarks.parts import asking, citations, retrieval
from engine.store.store import Store


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        found, ways = retrieval.found_again(store)
        cost, sizes = retrieval.hundred_thousand(store)
    return {"benchmark": "grounding", **ways, **sizes, "claims": [*found, *cost, *citations.claims(), *asking.claims()]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    options = parser.parse_args()
    told = measure()
    print(json.dumps(told) if options.json else json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
