"""Mathematical problems with answers that two ways agree on.

Problems are new ones, inspired by a seed, and solutions are step-by-step with the answer by majority vote, as in
OpenMathInstruct-2 (Toshniwal et al., 2024, arXiv:2410.01560, section 2). The verifier that runs is a program that the model
writes for the problem (program-aided, Gao et al., 2022, arXiv:2211.10435): what it prints in the sandbox has to equal the
majority's answer.
"""

from __future__ import annotations

from collections import Counter
from typing import ClassVar, Literal

from pydantic import Field

from generators.backends.protocol import Answer
from generators.drafts.drafts import Draft, Execution, Made, Rejected, Useless, ask, assistant, user, whole
from generators.instructions.method import Method, World
from generators.instructions.methods.code import BLOCK
from generators.rules.mathematics.equality import equal, final_answer
from generators.rules.rule import Sandbox
from generators.rules.sandbox.programs import Limits

PRINTED = 1e-9  # relative error of what a program prints: 0.1 + 0.2 is 0.30000000000000004


class Mathematics(Method):
    """Problems like the seeds, each with a solution whose answer a program confirms."""

    needs: ClassVar[tuple[str, ...]] = ("seeds",)

    template_variables: ClassVar[dict[str, dict[str, str]]] = {
        "problem": {"problem": "a seed"},
        "solution": {"problem": "the new problem"},
        "program": {"problem": "the new problem"},
    }

    name: Literal["mathematics"]
    votes: int = Field(4, ge=1, description="Solutions sampled for a problem.")
    majority: float = Field(0.5, gt=0, le=1, description="The least share of the votes that the answer must have.")
    cpu_s: int = Field(5, ge=1, description="CPU seconds the program may take.")
    sandbox: Sandbox = "whole"

    def draft(self, world: World, number: int) -> Draft:
        seed = world.nth(world.seeds, number)
        answer = yield ask("mathematics/problem", world.sampling, problem=seed.text)
        problem = whole(answer)
        if alike := world.known.like(problem):
            raise Rejected("not_novel", f"{alike[0]} {alike[2]:.2f} with {alike[1]}")
        solutions, without = list[tuple[str, str]](), list[Answer]()
        for _ in range(self.votes):
            answer = yield ask("mathematics/solution", world.sampling, problem=problem)
            if found := final_answer(answer.text):
                solutions.append((found, answer.text))
            else:
                without.append(answer)
        if not solutions:
            raise Useless("no_answer", f"none of {self.votes} solutions ends in an answer", without)
        counts: Counter[str] = Counter()
        for found, _ in solutions:
            counts[next((one for one in counts if equal(one, found)), found)] += 1
        value, votes = counts.most_common(1)[0]
        if votes < self.majority * self.votes:
            raise Rejected("no_majority", f"{dict(counts)} of {self.votes} votes")
        answer = yield ask("mathematics/program", world.sampling, problem=problem)
        blocks = BLOCK.findall(answer.text)
        limits = Limits(cpu_s=self.cpu_s, wall_s=2.0 * self.cpu_s)
        outcome = yield Execution(blocks[-1] if blocks else answer.text, limits, weaker=self.sandbox == "weaker")
        if not outcome.ok:
            raise Rejected("program_failed", outcome.detail)
        printed = outcome.stdout.strip().splitlines()
        if not printed or not equal(printed[-1], value, PRINTED):
            raise Rejected("disagreement", f"the program prints {printed[-1:]}, the majority says {value}")
        text = next(text for found, text in solutions if equal(found, value))
        return Made(
            [user(problem), assistant(text)], problem, [seed.id], reference=value,
            metadata={"votes": votes, "of": self.votes, "verified": "a program agrees"},
        )  # fmt: skip
