"""The world that faults are injected into: files, a server that answers by its request alone, and a recipe with every stage kind."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

RECIPE = Path(__file__).with_name("everything.yaml")
THINGS = [
    "a rose",
    "the sea",
    "grass",
    "coal",
    "snow",
    "a lemon",
    "the sky",
    "a fox",
    "a plum",
    "clay",
    "a crow",
    "milk",
]
COLOURS = ["red", "blue", "green", "black", "white", "yellow", "blue", "orange", "violet", "brown", "black", "white"]


def answer(messages: list[dict[str, str]], seed: int) -> str:
    """What the server says: a function of what it is asked."""
    asked = messages[-1]["content"]
    if '"winner"' in asked:
        return json.dumps({"winner": random.Random(f"{asked}{seed}").choice("AB")})
    return f"{random.Random(f'{asked}{seed}').choice(COLOURS)} {seed % 100} [1]"


def make(folder: Path, url: str, only: list[str] | None = None) -> Path:
    """Write the files and the recipe into a folder; returns the recipe.

    Args:
        only: these stages and what they need: every command imports the kinds of all stages that a recipe names.
    """
    draw = random.Random(5)
    (folder / "texts").mkdir(parents=True)
    words = [
        "wind",
        "rain",
        "stone",
        "river",
        "hill",
        "field",
        "road",
        "bird",
        "night",
        "morning",
        "winter",
        "summer",
        "letter",
    ]
    texts = [" ".join(draw.choice(words) for _ in range(draw.randint(8, 40))) for _ in range(90)]
    texts += [f"{text} again" for text in texts[:15]] + ["too short"] * 3
    for number in range(3):
        lines = [json.dumps({"text": text}) for text in texts[number::3]]
        (folder / "texts" / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    # Six slices: what is spread over processes needs more than one.
    crowd = [json.dumps({"text": f"{n} {texts[n % 90]}"}) for n in range(60_000)]
    (folder / "crowd.jsonl").write_text("\n".join(crowd) + "\n")
    exam = [{"prompt": [{"role": "user", "content": text}]} for text in (texts[4], "What colour is a cloud?")]
    (folder / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in exam))
    rows = [f"{thing},{colour}" for thing, colour in zip(THINGS, COLOURS, strict=True)]
    (folder / "facts.csv").write_text("thing,colour\n" + "\n".join(rows) + "\n")
    programs = [
        {
            "prompt": [{"role": "user", "content": f"Write add{n}."}],
            "completion": [{"role": "assistant", "content": f"```python\ndef add{n}(a, b):\n    return a + b + {n % 2}\n```"}],
            "reference": f"assert add{n}(1, 2) == 3",
        }
        for n in range(6)
    ]  # fmt: skip
    (folder / "programs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in programs))
    bench = [
        {"id": n, "prompt": f"What colour is {thing}?", "chosen": f"It is {colour}.", "rejected": "I won't say.", "subset": "colours"}
        for n, (thing, colour) in enumerate(zip(THINGS[:6], COLOURS, strict=False))
    ]  # fmt: skip
    (folder / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bench))
    recipe = folder / RECIPE.name
    told = yaml.safe_load(RECIPE.read_text().replace("URL", url))
    if only is not None:
        kept = _needed(told["stages"], only)
        told["stages"] = {name: stage for name, stage in told["stages"].items() if name in kept}
    recipe.write_text(yaml.safe_dump(told, sort_keys=False))
    return recipe


def _needed(stages: dict[str, Any], names: list[str]) -> set[str]:
    found = set(names)
    for name in names:
        given = stages[name].get("from", [])
        values = given.values() if isinstance(given, dict) else [given]
        found |= _needed(stages, [one for value in values for one in ([value] if isinstance(value, str) else value)])
    return found
