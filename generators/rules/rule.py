r"""Rules: what an answer is worth, found out by computing. Each gives a number an answer: true is 1, false and null are 0.

A rule is a Polars SQL expression over the columns that the `judge` stage has too: `completion`, `reference`, `prompt` (the
last thing the user said), `length` (tokens) and `finish_reason` ("stop" where the model ended its answer, "length" where it
was cut). Or it checks an answer against something known and gives 1 or 0:

    right:   {kind: number}                        # both end in the same number: $1,234.50, 1/2, 25 %  (`numbers.py`)
    solved:  {kind: mathematics}                   # both end in the same expression, tuple, set ...  (`equality.py`)
    spelled: {kind: exact}                         # the whole answer is the reference, but for case and white space
    marked:  {kind: regex, pattern: "Answer: (?P<answer>.+)"}    # what the group `answer` holds is the reference
    works:   {kind: tests, timeout: 5}             # the reference is code that raises if the answer's code is wrong
    refuses: {kind: refusal}                       # the answer declines; `expect: reference` reads refuse | answer there

Or it is a function of one's own, in a file beside the recipe or a module that is installed (`reward_function.py`):

    scored:  {python: "rewards.py:score"}          # score(prompts, completions, reference, **columns) -> a number an answer

This file is what configurations import; `verify.py` does the work.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator

from engine.errors import UserError
from engine.stage.stage import NotIdentity

# Raised by hand when the same answer and reference would get another verdict than before, from a rule that compares answers
# as numbers or as mathematics. It is part of the identity of stages that use one.
EQUALITY = 3
# Raised by hand when the same program could end otherwise, or be graded otherwise by the same tests. Part of the identity of stages
# that run any. 2: tests are in another process than the program, and the sandbox is another.
PROGRAMS = 2


class _Check(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @property
    def compares(self) -> bool:
        """Whether it needs a reference."""
        return True


class NumberRule(_Check):
    """The last number of the answer (or the marked one) is the reference's."""

    kind: Literal["number"]
    tolerance: float = Field(
        default=0.0, ge=0, description="Relative error that is allowed; 0 compares exact fractions."
    )


class MathematicsRule(_Check):
    """The final answer equals the reference's: a number, an expression, a tuple, an interval, a set, words."""

    kind: Literal["mathematics"]


class ExactRule(_Check):
    """The whole answer is the reference; runs of white space count as one space."""

    kind: Literal["exact"]
    ignore_case: bool = True


class RegexRule(_Check):
    """The pattern is found in the answer. If it has a group `answer`, the last find's has to be the reference."""

    kind: Literal["regex"]
    pattern: str
    ignore_case: bool = True

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"this is no regular expression: {error}") from None
        return value

    @property
    def compares(self) -> bool:
        return "answer" in re.compile(self.pattern).groupindex


Sandbox = Annotated[
    Literal["whole", "weaker"],
    NotIdentity,
    Field(
        description="Where programs run. whole: nothing is run where the kernel refuses a part of the sandbox; weaker: it is, without "
        "that part (`flywheel doctor` says which)."
    ),
]


class TestsRule(_Check):
    """The answer's Python passes the reference's, which runs in another process and asks it by value (`sandbox/programs.py`): the standard
    library alone, no network, no other process, an empty folder, limits on time, memory and disk.
    """

    kind: Literal["tests"]
    timeout: float = Field(default=5.0, gt=0, le=600, description="Seconds.")
    memory_mb: int = Field(default=512, ge=64)
    sandbox: Sandbox = "whole"


class RefusalRule(_Check):
    """Whether the answer declines, told by how its first 300 characters are worded: English, and no judge of tone."""

    kind: Literal["refusal"]
    expect: Literal["refuse", "answer", "reference"] = Field(
        default="refuse", description="1 for this; `reference`: for what the prompt's reference says, refuse or answer."
    )

    @property
    def compares(self) -> bool:
        return self.expect == "reference"


class PythonRule(BaseModel):
    """A Python function that is called with all answers at once and gives a number for each, as TRL's reward functions do."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    python: str = Field(
        pattern=r"^[^:\s][^:]*:[A-Za-z_][\w.]*$",
        description="MODULE:FUNCTION or FILE.py:FUNCTION, from the recipe's folder.",
    )
    format: Literal["standard", "conversational"] = Field(
        default="standard",
        description="TRL's: prompts and completions are texts (what the user last said, what was answered), or lists of messages.",
    )


def _tag(value: Any) -> str | None:
    if isinstance(value, str):
        return "expression"
    if "python" in value if isinstance(value, dict) else isinstance(value, PythonRule):
        return "python"
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


def _binds(expression: str) -> str:
    """An expression that gives a number, true or false over the columns of an answer: known before there is one."""
    from generators.rules.answer_columns import check_expression

    try:
        check_expression(expression)
    except UserError as error:
        raise ValueError(str(error)) from None
    return expression


Check = NumberRule | MathematicsRule | ExactRule | RegexRule | TestsRule | RefusalRule
Rule = Annotated[
    Annotated[str, AfterValidator(_binds), Tag("expression")]
    | Annotated[NumberRule, Tag("number")]
    | Annotated[MathematicsRule, Tag("mathematics")]
    | Annotated[ExactRule, Tag("exact")]
    | Annotated[RegexRule, Tag("regex")]
    | Annotated[TestsRule, Tag("tests")]
    | Annotated[RefusalRule, Tag("refusal")]
    | Annotated[PythonRule, Tag("python")],
    Discriminator(
        _tag,
        custom_error_type="rule",
        custom_error_message="expected an expression, or a mapping with `kind`: number, mathematics, exact, regex, tests or "
        "refusal; or with `python`: MODULE:FUNCTION",
    ),
]
# What the `judge` stage computes besides expressions.
Verifier = Literal["code", "mathematics", "json"]


def version(rules: Iterable[Rule]) -> dict[str, int]:
    """For the identity of a stage with these rules: how answers are compared, and programs run, where one of them does so."""
    rules = list(rules)
    equality = {"equality": EQUALITY} if any(isinstance(rule, NumberRule | MathematicsRule) for rule in rules) else {}
    return equality | ({"programs": PROGRAMS} if any(isinstance(rule, TestsRule) for rule in rules) else {})


def sources(rules: Iterable[Rule], base: str) -> dict[str, str]:
    """For `Stage.sources`: digests of the files that the functions among these rules are made of.

    Raises:
        UserError: there is no such module or file.
    """
    functions = [rule.python for rule in rules if isinstance(rule, PythonRule)]
    if not functions:
        return {}
    from engine import user_code

    return {name: digest for function in functions for name, digest in user_code.sources(function, base).items()}
