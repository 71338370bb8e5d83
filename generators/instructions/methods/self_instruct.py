"""Self-Instruct (Wang et al., 2022, arXiv:2212.10560): a model that is shown tasks writes more tasks, and then does them.

As published (section 2.2): eight demonstrations, six that people wrote and two that were generated before; the model
says whether a task is a classification; it writes the input first and then the output, but for a classification the
label first and then an input that has it, since inputs first are mostly of one label; what is alike (ROUGE-L 0.7), what
asks for pictures and the like, and what is malformed is left out. One instance of a task is kept, not several: novelty
is that of rows.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from engine import seeds
from engine.text.words import tokens
from generators.drafts.content import emptiness, fault
from generators.drafts.drafts import YES_NO, Draft, Made, Rejected, Useless, ask, assistant, user, yes
from generators.instructions.method import Method, Seed, World

# A model that reads and writes text alone can't do these.
BEYOND_TEXT = re.compile(
    r"\b(images?|pictures?|photos?|graphs?|charts?|diagrams?|files?|maps?|draw|plot|video|audio|music|flowcharts?)\b",
    re.I,
)
INSTANCE = {
    "type": "object",
    "properties": {"input": {"type": "string"}, "output": {"type": "string"}},
    "required": ["input", "output"],
    "additionalProperties": False,
}
# The label is asked for before the input: guided decoding keeps the order of the properties.
LABELLED = {**INSTANCE, "properties": {"output": {"type": "string"}, "input": {"type": "string"}}}


class SelfInstruct(Method):
    """Instructions from seed tasks."""

    needs: ClassVar[tuple[str, ...]] = ("seeds",)

    template_variables: ClassVar[dict[str, dict[str, str]]] = {
        "instructions": {"tasks": "tasks that are shown", "more": "how many to write"},
        "classification": {"task": "the new task", "examples": "pairs of a task and `yes` or `no`"},
        "input_first": {"task": "the new task", "examples": "pairs of a task and its instance, JSON"},
        "output_first": {"task": "the new task", "examples": "pairs of a task and its instance, JSON"},
    }

    name: Literal["self_instruct"]
    human: int = Field(6, ge=1, description="Tasks of people shown.")
    generated: int = Field(2, ge=0, description="Tasks shown that were generated before, once there are some.")
    asked_for: int = Field(8, ge=1, description="New tasks asked for at once.")

    def draft(self, world: World, number: int) -> Draft:
        random = world.random(number, "demonstrations")

        def pick(rows: list[Any], most: int) -> list[Any]:
            return [rows[i] for i in random.permutation(len(rows))[:most].tolist()]

        earlier = pick(world.made, self.generated)
        people = pick(world.seeds, self.human + self.generated - len(earlier))
        shown = [(row["id"], row["metadata"]["key"]) for row in earlier] + [(row.id, row.text) for row in people]
        shown = [shown[i] for i in random.permutation(len(shown)).tolist()]
        answer = yield ask(
            "self_instruct/instructions", world.sampling, tasks=[text for _, text in shown], more=self.asked_for
        )
        found = tasks(answer.text, len(shown) + 1)
        if answer.finish_reason == "length":
            found = found[:-1]  # it may be half a task
        if not found:
            raise Useless("unparsable", f"no numbered task in {answer.text[:200]!r}")
        return [self._instance(world, text, [one for one, _ in shown]) for text in found[: self.asked_for]]

    def _instance(self, world: World, instruction: str, parents: list[str]) -> Draft:
        check(instruction)
        if found := fault(instruction):
            raise Rejected(*found)
        if alike := world.known.like(instruction):  # before anything is spent on it
            raise Rejected("not_novel", f"{alike[0]} {alike[2]:.2f} with {alike[1]}")
        certain = replace(world.sampling, temperature=0.0)
        flagged = [seed for seed in world.seeds if isinstance(seed.values.get("is_classification"), bool)]
        ordered = seeds.shuffled(flagged, world.seed, "classification")
        positive = [seed for seed in ordered if seed.values["is_classification"]][:12]
        negative = [seed for seed in ordered if not seed.values["is_classification"]][:19]
        shown = seeds.shuffled([*positive, *negative], world.seed, "order")
        examples = [(seed.text, "yes" if seed.values["is_classification"] else "no") for seed in shown]
        answer = yield ask("self_instruct/classification", certain, YES_NO, task=instruction, examples=examples)
        labels_first = yes(answer)
        name = "self_instruct/output_first" if labels_first else "self_instruct/input_first"
        worked = [one for seed in world.seeds[:64] if (one := _worked(seed, labels_first))]
        picked = seeds.shuffled(worked, world.seed, "instances", instruction)[:4]
        answer = yield ask(
            name, certain, LABELLED if labels_first else INSTANCE, task=instruction,
            examples=[(task, json.dumps(instance, ensure_ascii=False)) for task, instance in picked],
        )  # fmt: skip
        instance = json.loads(answer.text)
        given, output = instance["input"].strip(), instance["output"].strip()
        if not output:
            raise Useless("empty", "the instance has no output")
        if given and (found := emptiness(given)):
            raise Useless("no_content", f"the input has {found}")
        if given == output:
            raise Rejected("output_repeats_input", output[:200])
        return Made(
            [user(f"{instruction}\n\n{given}" if given else instruction), assistant(output)], instruction, parents,
            metadata={"instruction": instruction, "input": given, "is_classification": labels_first},
        )  # fmt: skip


def tasks(text: str, first: int) -> list[str]:
    """The tasks in a numbered list whose first number may have stood in the question already."""
    parts = re.split(
        r"(?:^|\n)\s*(?:Task\s+)?(\d+)\s*[.:)]\s*",
        f"\n{text}" if re.match(r"\s*(Task\s+)?\d", text) else f"\nTask {first}: {text}",
    )
    return [" ".join(part.split()) for part in parts[2::2] if part.strip()]


def check(instruction: str) -> None:
    """The published filters on an instruction.

    Raises:
        Rejected: it is left out.
    """
    length = len(tokens(instruction))
    if length <= 3 or length > 150:
        raise Rejected("length", f"{length} words: {instruction[:200]}")
    if found := BEYOND_TEXT.search(instruction):
        raise Rejected("beyond_text", f"`{found[0]}`: {instruction[:200]}")
    if instruction.lower().startswith("write a program"):
        raise Rejected("write_a_program", instruction[:200])
    if not instruction[0].isalnum() or not instruction[0].isascii():
        raise Rejected("first_character", instruction[:200])


def _worked(seed: Seed, labels_first: bool) -> tuple[str, dict[str, str]] | None:
    """A seed with an instance of its own, its parts in the order asked for."""
    if bool(seed.values.get("is_classification")) != labels_first:
        return None
    instances = seed.values.get("instances") or [{"input": seed.values.get("input", ""), "output": seed.answer}]
    given, output = str(instances[0].get("input") or ""), str(instances[0].get("output") or "")
    if not output or len(given) + len(output) > 600:
        return None
    return seed.text, {"output": output, "input": given} if labels_first else {"input": given, "output": output}
