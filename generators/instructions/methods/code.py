"""Programming tasks whose solutions run (SelfCodeAlign; Wei et al., 2024, arXiv:2410.24198; snippets as inspiration from
OSS-Instruct, Wei et al., 2023, arXiv:2312.02120).

As published: a seed snippet gives concepts, concepts give an instruction, and the model answers with a solution and tests
of its own; answers are sampled until one passes its tests in a sandbox, and only such rows are kept. One check is
added: the tests must fail without the solution, since tests that pass on nothing say nothing.
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field

from generators.backends.protocol import Answer
from generators.drafts.drafts import Draft, Execution, Made, Rejected, Useless, ask, assistant, user, whole
from generators.instructions.method import Method, World
from generators.rules.rule import Sandbox
from generators.rules.sandbox.programs import Limits

BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)


class Code(Method):
    """Python tasks inspired by the records, each with a solution that passes its tests."""

    needs: ClassVar[tuple[str, ...]] = ("records",)

    template_variables: ClassVar[dict[str, dict[str, str]]] = {
        "concepts": {"snippet": "code of a record"},
        "instruction": {"snippet": "code of a record", "concepts": "what the model found in it, separated by commas"},
        "solution": {"task": "the programming task"},
    }

    name: Literal["code"]
    samples: int = Field(4, ge=1, description="Answers sampled for a task, at most; the first that passes is kept.")
    cpu_s: int = Field(5, ge=1, description="CPU seconds a solution and its tests may take.")
    memory_mb: int = Field(512, ge=64)
    sandbox: Sandbox = "whole"

    def draft(self, world: World, number: int) -> Draft:
        record = world.nth(world.records, number)
        limits = Limits(cpu_s=self.cpu_s, wall_s=2.0 * self.cpu_s, memory_mb=self.memory_mb)
        answer = yield ask("code/concepts", world.sampling, snippet=record.text[:4000])
        concepts = whole(answer)
        answer = yield ask("code/instruction", world.sampling, snippet=record.text[:4000], concepts=concepts)
        task = whole(answer)
        if alike := world.known.like(task):
            raise Rejected("not_novel", f"{alike[0]} {alike[2]:.2f} with {alike[1]}")
        trouble, without = "no answer has a block of code and a block of tests", list[Answer]()
        for sample in range(self.samples):
            answer = yield ask("code/solution", world.sampling, task=task)
            blocks = [block.strip() for block in BLOCK.findall(answer.text)]
            if len(blocks) < 2:
                without.append(answer)
                continue
            solution, tests = blocks[0], blocks[-1]
            outcome = yield Execution(solution, limits, tests, self.sandbox == "weaker")
            if not outcome.ok:
                trouble = outcome.detail
                continue
            outcome = yield Execution("", limits, tests, self.sandbox == "weaker")
            if outcome.ok:
                trouble = "the tests pass without a solution"
                continue
            said = answer.text[: answer.text.rindex("```", 0, answer.text.rindex("```"))].rstrip()
            return Made(
                [user(task), assistant(said)], task, [record.id], reference=tests,
                metadata={"concepts": concepts, "sample": sample, "solution": solution, "verified": "tests passed"},
            )  # fmt: skip
        raise Useless("tests_failed", trouble, without) if without else Rejected("tests_failed", trouble)
