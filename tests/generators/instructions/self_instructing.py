"""A model that does what Self-Instruct asks: what the method makes of it can be worked out by hand."""

from __future__ import annotations

import json
import re

VERBS = ["Describe", "Explain", "Compare", "Translate", "Summarize", "List", "Name", "Classify", "Rank", "Invent"]
THINGS = [
    "rivers",
    "clocks",
    "mushrooms",
    "treaties",
    "violins",
    "planets",
    "bridges",
    "soups",
    "glaciers",
    "alphabets",
]


def task(number: int) -> str:
    a, b = divmod(number, len(THINGS))
    return f"{VERBS[a % 10]} {THINGS[b]} using exactly {number} unusual words about {THINGS[(number * 7 + 3) % 10]}{number}"


class SelfInstructing:
    """Writes `each` tasks a request; every third is a classification; some are not fit to be kept."""

    def __init__(self, each: int = 4) -> None:
        self.each, self.next = each, 0

    def __call__(self, text: str, seed: int) -> str:
        if text.startswith("Here is the beginning"):
            first = len(re.findall(r"^Task \d+: .", text, re.M)) + 1
            made = [task(self.next + i) for i in range(self.each)]
            self.next += self.each
            return "\n".join([made[0], *(f"Task {first + i}: {one}" for i, one in enumerate(made) if i)])
        label = '"output": "yes"'
        if text.startswith("Is a task a classification"):
            return json.dumps({"answer": "yes" if int(re.findall(r"exactly (\d+)", text)[-1]) % 3 == 0 else "no"})
        number = re.findall(r"exactly (\d+)", text)[-1]
        if text.startswith("The task is a classification"):
            return f'{{{label}, "input": "given {number}"}}'
        return json.dumps({"input": "", "output": f"done {number}"})
