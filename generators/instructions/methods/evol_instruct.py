"""Evol-Instruct (WizardLM; Xu et al., 2023, arXiv:2304.12244): instructions are rewritten to be harder, or stranger.

As published (section 3): in every generation each instruction meets one of six operations, drawn evenly: five in depth
(constraints, deepening, concreteness, reasoning steps, complicated input) and one in breadth (another instruction of the
same domain). An evolution is eliminated, and its instruction evolves anew in the next generation, if it tells no news,
if the model can't answer it ("sorry", in under 80 words), if the answer is punctuation and stop words, or if it copies
words of the rewriting prompt. What survives in any generation is kept.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from engine.text.words import tokens
from generators.drafts.drafts import YES_NO, Draft, Made, Query, Rejected, ask, assistant, user, whole, yes
from generators.instructions.method import Method, World

DEPTH = {
    "constraints": "Add one more constraint or requirement.",
    "deepening": "If it asks about certain issues, ask about them in more depth and in more breadth.",
    "concretizing": "Replace general concepts with more specific ones.",
    "reasoning": "If it can be solved in a few simple steps of thought, ask explicitly for several steps of reasoning.",
    "complicate_input": "Add input that has to be worked on: a table, a snippet of code, a formula, a short document.",
}
STOP_WORDS = frozenset([
    "a", "an", "the", "and", "or", "but", "if", "then", "of", "to", "in", "on", "at", "by", "for", "with", "from",
    "as", "is", "are", "was", "were", "be", "been", "it", "its", "this", "that", "these", "those", "i", "you",
    "he", "she", "we", "they", "me", "him", "her", "us", "them", "my", "your", "his", "our", "their", "do",
    "does", "did", "not", "no", "so",
])  # fmt: skip
COPIED = re.compile(r"#?(given|rewritten|created|new|original) (prompt|instruction)#?", re.I)


class EvolInstruct(Method):
    """Instructions evolved from seeds, in depth and breadth."""

    needs: ClassVar[tuple[str, ...]] = ("seeds",)

    template_variables: ClassVar[dict[str, dict[str, str]]] = {
        "depth": {"instruction": "the instruction to rewrite", "operation": "how it is to become harder"},
        "breadth": {"instruction": "the instruction to take inspiration from"},
        "equal": {"first": "the instruction as it was", "second": "the instruction as it is"},
    }

    name: Literal["evol_instruct"]
    generations: int = Field(4, ge=1, description="How often each seed is evolved.")
    operations: list[
        Literal["constraints", "deepening", "concretizing", "reasoning", "complicate_input", "breadth"]
    ] = Field([*DEPTH, "breadth"], min_length=1, description="What is drawn from.")  # pyright: ignore

    def drafts(self, world: World) -> int:
        return self.generations * len(world.seeds)

    def round(self, world: World) -> int:
        return len(world.seeds)  # so that an instruction meets its own last evolution

    def draft(self, world: World, number: int) -> Draft:
        generation, place = divmod(number, len(world.seeds))
        seed = world.seeds[place]
        last = world.latest.get(seed.id)
        before, parent = (last["metadata"]["key"], last["id"]) if last else (seed.text, seed.id)
        operation = self.operations[int(world.random(number, "operation").integers(len(self.operations)))]
        if operation == "breadth":
            answer = yield ask("evol_instruct/breadth", world.sampling, instruction=before)
        else:
            answer = yield ask("evol_instruct/depth", world.sampling, instruction=before, operation=DEPTH[operation])
        evolved = whole(answer)
        if (found := COPIED.search(evolved)) and not COPIED.search(before):
            raise Rejected("copies_the_prompt", f"`{found[0]}`: {evolved[:200]}")
        certain = replace(world.sampling, temperature=0.0)
        answer = yield ask("evol_instruct/equal", certain, YES_NO, first=before, second=evolved)
        if yes(answer):
            raise Rejected("no_news", f"says what {parent} says: {evolved[:200]}")
        answer = yield Query([user(evolved)], world.sampling)
        said = whole(answer)
        spoken = re.findall(r"[a-z']+", said.lower())
        if "sorry" in spoken and len(tokens(said)) < 80:
            raise Rejected("too_hard", said[:200])
        if not any(word not in STOP_WORDS for word in re.findall(r"\w+", said.lower())):
            raise Rejected("says_nothing", said[:200])
        return Made(
            [user(evolved), assistant(said)], evolved, [parent],
            metadata={"lineage": seed.id, "generation": generation + 1, "operation": operation},
        )  # fmt: skip
