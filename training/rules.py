"""Rules: what an answer is worth, found out by computing. Each gives a number an answer: true is 1, false and null are 0.

A rule is a Polars SQL expression over the columns that `generators.judge.stage` has too: `completion`, `reference`, `prompt` (the
last thing the user said), `length` (tokens) and `finish_reason` ("stop" where the model ended its answer, "length" where it
was cut). Or it is a verifier, which checks an answer against something known and gives 1 or 0:

    right:   {kind: number}                        # both end in the same number: $1,234.50, 1/2, 25 %  (training.numbers)
    spelled: {kind: exact}                         # the whole answer is the reference, but for case and white space
    marked:  {kind: regex, pattern: "Answer: (?P<answer>.+)"}    # what the group `answer` holds is the reference
    works:   {kind: tests, timeout: 5}             # the reference is code that raises if the answer's code is wrong
    refuses: {kind: refusal}                       # the answer declines; `expect: reference` reads refuse | answer there
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator

from engine.errors import UserError
from generators.rules.columns import COLUMNS
from generators.rules.columns import score as judge
from training import numbers

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from training.rollouts import Rollout


class _Verifier(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def check(self, completion: str, reference: str) -> bool:
        raise NotImplementedError

    def measure(self, rows: pl.DataFrame, name: str) -> NDArray[np.float64]:
        """1 or 0 for every row; 0 where a row has no reference.

        Raises:
            UserError: no row has one.
        """
        completions, references = rows["completion"].to_list(), rows["reference"].to_list()
        if len(rows) and all(reference is None for reference in references):
            raise UserError(
                f"rule `{name}` ({cast(Any, self).kind}) compares answers with `reference`, and no prompt has one. Give "
                "the prompts a column `reference`, or check by an expression over `completion`."
            )
        return np.array(
            [
                float(reference is not None and self.check(completion or "", reference))
                for completion, reference in zip(completions, references, strict=True)
            ]
        )


class Number(_Verifier):
    """The last number of the answer (or the marked one) is the reference's."""

    kind: Literal["number"]
    tolerance: float = Field(
        default=0.0, ge=0, description="Relative error that is allowed; 0 compares exact fractions."
    )

    def check(self, completion: str, reference: str) -> bool:
        return numbers.agrees(completion, reference, self.tolerance)


class Exact(_Verifier):
    """The whole answer is the reference; runs of white space count as one space."""

    kind: Literal["exact"]
    ignore_case: bool = True

    def check(self, completion: str, reference: str) -> bool:
        return _plain(completion, self.ignore_case) == _plain(reference, self.ignore_case)


class Regex(_Verifier):
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

    def check(self, completion: str, reference: str) -> bool:
        found = list(re.finditer(self.pattern, completion, re.IGNORECASE if self.ignore_case else 0))
        if not self.compares:
            return bool(found)
        last = found[-1]["answer"] if found else None
        return last is not None and _plain(last, self.ignore_case) == _plain(reference, self.ignore_case)

    def measure(self, rows: pl.DataFrame, name: str) -> NDArray[np.float64]:
        if self.compares:
            return super().measure(rows, name)
        return np.array([float(self.check(text or "", "")) for text in rows["completion"].to_list()])


class Tests(_Verifier):
    """The answer's Python passes the reference's, run after it in the sandbox (`generators.rules.sandbox`): the standard library alone,
    no network, no other process, an empty folder, limits on time, memory and disk.
    """

    kind: Literal["tests"]
    timeout: float = Field(default=5.0, gt=0, le=600, description="Seconds.")
    memory_mb: int = Field(default=512, ge=64)

    def check(self, completion: str, reference: str) -> bool:
        return passes([code_of(completion), reference], self.timeout, self.memory_mb)

    def measure(self, rows: pl.DataFrame, name: str) -> NDArray[np.float64]:
        super().measure(rows.clear(), name)
        pairs = list(zip(rows["completion"].to_list(), rows["reference"].to_list(), strict=True))
        if pairs and all(reference is None for _, reference in pairs):
            super().measure(rows, name)
        with ThreadPoolExecutor(max_workers=4) as pool:
            return np.array(
                list(pool.map(lambda p: float(p[1] is not None and self.check(p[0] or "", p[1])), pairs)), np.float64
            )


REFUSAL = re.compile(
    r"\b(?:I(?:'m| am) (?:very |so |really )?(?:sorry|afraid)\b(?=.{0,80}\b(?:can(?:no|')t|unable|won't|not able)\b)"
    r"|I (?:can(?:no|')?t|can not|could not|won't|will not|must decline|refuse|am unable|am not able)\b"
    r"(?=.{0,60}\b(?:help|assist|provide|answer|fulfil|comply|do that|support|create|write|give|engage|share|discuss|with that)\w*)"
    r"|I must (?:respectfully )?(?:decline|refuse)|as an AI\b.{0,80}\b(?:can(?:no|')t|unable|not able)\b)",
    re.IGNORECASE | re.DOTALL,
)


class Refusal(_Verifier):
    """Whether the answer declines, told by how its first 300 characters are worded: English, and no judge of tone."""

    kind: Literal["refusal"]
    expect: Literal["refuse", "answer", "reference"] = Field(
        default="refuse", description="1 for this; `reference`: for what the prompt's reference says, refuse or answer."
    )

    def check(self, completion: str, reference: str) -> bool:
        wanted = reference.strip().lower() if self.expect == "reference" else self.expect
        if wanted not in ("refuse", "answer"):
            raise UserError(f"a refusal is expected by the reference `refuse` or `answer`, found `{reference}`.")
        opening = completion[:300].replace("\u2019", "'")
        return bool(REFUSAL.search(opening)) == (wanted == "refuse")

    def measure(self, rows: pl.DataFrame, name: str) -> NDArray[np.float64]:
        if self.expect == "reference":
            return super().measure(rows, name)
        return np.array([float(self.check(text or "", "")) for text in rows["completion"].to_list()])


def _tag(value: Any) -> str | None:
    if isinstance(value, str):
        return "expression"
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


Verifier = Number | Exact | Regex | Tests | Refusal
Rule = Annotated[
    Annotated[str, Tag("expression")]
    | Annotated[Number, Tag("number")]
    | Annotated[Exact, Tag("exact")]
    | Annotated[Regex, Tag("regex")]
    | Annotated[Tests, Tag("tests")]
    | Annotated[Refusal, Tag("refusal")],
    Discriminator(
        _tag,
        custom_error_type="rule",
        custom_error_message="expected an expression, or a mapping with `kind`: number, exact, regex, tests or refusal",
    ),
]


def frame(rollouts: Sequence[Rollout]) -> pl.DataFrame:
    """The columns that rules are written over, one row for each rollout."""
    import polars as pl

    return pl.DataFrame(
        {
            "completion": [r.text for r in rollouts],
            "reference": [r.question.reference for r in rollouts],
            "prompt": [r.question.said for r in rollouts],
            "length": [len(r.token_ids) for r in rollouts],
            "finish_reason": [r.finish_reason for r in rollouts],
        },
        schema=COLUMNS,
    )


def measure(rule: Rule, rows: pl.DataFrame, name: str) -> NDArray[np.float64]:
    """The value of a rule for every row; null counts as 0.

    Raises:
        UserError: it is no expression over these columns, gives no number, or gives one that is NaN or infinite.
    """
    if not isinstance(rule, str):
        return rule.measure(rows, name)
    values = judge({name: rule}, rows).to_series().fill_null(0.0).to_numpy()
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise UserError(f"rule `{name}`: `{rule}` is NaN or infinite for {bad} of {len(values)} answers.")
    return values


def _plain(text: str, ignore_case: bool) -> str:
    words = " ".join(text.split())
    return words.casefold() if ignore_case else words


def code_of(text: str) -> str:
    """The Python in an answer: its fenced blocks, one after the other; the whole text if there is none."""
    blocks = re.findall(
        r"^[ \t]*```(?:python|py)?[ \t]*\n(.*?)^[ \t]*```", text, re.DOTALL | re.MULTILINE | re.IGNORECASE
    )
    return "\n".join(cast(Sequence[str], blocks)) if blocks else text


def passes(programs: Sequence[str], timeout: float, memory_mb: int) -> bool:
    """Whether these Python programs, run one after the other, reach the last line of the last, within limits.

    Raises:
        UserError: this machine can't hold a program back.
    """
    from generators.rules.sandbox import Limits, Unsafe, run

    limits = Limits(cpu_s=int(timeout) + 1, wall_s=timeout, memory_mb=memory_mb, disk_mb=1)
    try:
        return run(programs, limits).ok
    except Unsafe as error:
        raise UserError(f"a rule of kind `tests` runs what a model wrote, and {error}.") from error
