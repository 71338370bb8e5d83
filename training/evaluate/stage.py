"""`evaluate`: models and prompts -> one table of how good their answers are, and every measurement behind it.

Each model answers every prompt `n` times, with the same seeds for all models. An answer is measured by `checks` (rules
that are true or false, and verifiers), by `utility` (a rule that says how good it is: the gold preference), by a reward
model, by its length, and by its KL to the reference model:

    KL(model || reference) = E[sum_t log model(y_t) - log reference(y_t)],  y from the model

estimated by the mean over answers (k1 in `training.rl.kl`: no bias, may be slightly negative).

`best_of: {sft: 4}` adds a line: of every four answers of `sft`, the one that the reward model likes best. It is what
reinforcement learning has to beat, and moves `sft` by log n - (n - 1)/n nats at most.

`candidates` are answers that were sampled before: they are measured by the same rules, and by whatever reward model is
given, without a token being generated. `texts` are documents that models read, for their bits a byte. `indexes` are searched for what
answers the prompts (`retrieval_measures.py`), in every way that they can be.

All intervals are 95 %, by resampling prompts. Each line of the table is one partition: a killed evaluation goes on with
the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from engine.errors import UserError, nearest
from engine.stage.drawing import Intervals
from engine.stage.stage import Audit, NotIdentity, Stage, port
from generators.backends.protocol import NucleusShare
from generators.rules.rule import Rule, sources, version
from training.evaluate import gate, metrics

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight


class Evaluate(Stage):
    """Compare models, or answers that are stored, on the same prompts, with intervals."""

    takes = {
        "models": port("Model", many=True, optional=True, labelled=True),
        "prompts": port("Prompt", "Conversation", many=True, optional=True),
        "candidates": port("Candidate", many=True, optional=True, labelled=True),
        "texts": port("Document", many=True, optional=True),
        "reward": port("RewardModel", optional=True),
        "indexes": port("Passage", many=True, optional=True, labelled=True),
    }
    gives = "Verdict"
    phase = "training"
    work = "training.evaluate.work:evaluate"
    drawings = (
        Intervals("gold_win_rate", "gold preference against the reference, 95 % interval", "utility"),
        Intervals("recall_at_5", "what answers is among the first five passages, 95 % interval"),
    )
    random = True
    version = 3

    reference: str | None = Field(
        None, description="The model that win rates and KL refer to, by its name in the recipe."
    )
    n: int = Field(4, ge=1, description="Answers of each model to a prompt.")
    temperature: float = Field(1.0, ge=0, description="KL is only measured at 1, where answers are the model's own.")
    top_p: NucleusShare = 1.0
    max_tokens: int = Field(64, ge=1, description="Longest answer, in tokens.")
    checks: dict[str, Rule] = Field(
        {},
        description="Name -> rule over completion, reference, prompt, length, finish_reason; a check, or a Python function.",
    )
    utility: Rule | None = Field(None, description="A rule that is higher for the better of two answers.")
    best_of: dict[str, int] = Field(
        {}, description="Model -> how many of its answers the reward model chooses from, for a line `MODEL best of N`."
    )
    cutoffs: list[int] = Field([1, 5, 10], min_length=1, description="Of `indexes`: the k of recall at k.")
    fail_if: list[str] = Field(
        [], description="Conditions that fail the stage, such as `ppo.accuracy < sft.accuracy - 0.05`."
    )
    show: int = Field(8, ge=0, description="Prompts whose answers are put side by side in samples.json.")
    gpu_share: Annotated[float, NotIdentity] = Field(
        0.5, gt=0, lt=1, description="Share of the GPU's memory for the engine that samples; models measure beside it."
    )
    contamination: Annotated[bool, NotIdentity] = Field(
        True, description="Also tell which prompts stand in what the models were trained on, by a stage of its own."
    )

    def identity(self) -> dict[str, Any]:
        own = super().identity()
        if own["cutoffs"] == [1, 5, 10]:  # as before there were indexes
            del own["cutoffs"]
        return {**own, **version(self._rules())}

    def sources(self, base: str) -> dict[str, str]:
        return sources(self._rules(), base)

    def check(self, known: Preflight) -> None:
        from generators.rules import reward_function

        models, stored, indexes = (
            [one.name for one in known.inputs.get(port, [])] for port in ("models", "candidates", "indexes")
        )
        self.check_names(models, stored, bool(known.inputs.get("reward")), indexes)
        reward_function.check(self._rules(), known)

    def check_names(
        self, models: Sequence[str], stored: Sequence[str], reward: bool, indexes: Sequence[str] = ()
    ) -> None:
        """Hold the names in the configuration to those of the inputs.

        Args:
            stored: names of candidates that were sampled before.
            indexes: whose ways to be searched are lines of the table, too: `handbook hybrid`.
            reward: whether a reward model is given.

        Raises:
            UserError: a name is no model's, or is taken.
        """
        lines = [*models, *stored]
        if len(set(lines)) < len(lines):
            raise UserError(
                "a model and stored candidates have the same name: call one of them something else in `from`."
            )
        for field, named in (("reference", [self.reference] if self.reference else []), ("best_of", self.best_of)):
            for name in named:
                if name not in lines and not (field == "reference" and name.rpartition(" ")[0] in indexes):
                    raise UserError(
                        f"`{field}` is {name}, which is none of the models.{nearest(name, lines)} Models: {', '.join(lines)}."
                    )
        if self.best_of and not reward:
            raise UserError("`best_of` chooses by a reward model: give one as `reward`.")
        reserved = {*metrics.BEHIND, *metrics.columns([])}
        for name in sorted(reserved & set(self.checks)):
            raise UserError(f"a check can't be called `{name}`: that is measured already. Choose another name.")

    def _rules(self) -> list[Rule]:
        return [*self.checks.values(), *([self.utility] if self.utility else [])]

    def audit(self) -> Audit | None:
        return Audit("contamination", models="models", rows="prompts") if self.contamination else None

    @field_validator("fail_if", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("best_of")
    @classmethod
    def _several(cls, value: dict[str, int]) -> dict[str, int]:
        for model, n in value.items():
            if n < 2:
                raise ValueError(f"the best of {n} answers of `{model}` is no choice; expected 2 or more")
        return value

    @field_validator("fail_if")
    @classmethod
    def _readable(cls, value: list[str], info: ValidationInfo) -> list[str]:
        for text in value:
            try:
                gate.parse(text, None, metrics.columns(list(info.data.get("checks", {})), info.data.get("cutoffs", [])))
            except UserError as error:
                raise ValueError(str(error).removesuffix(".")) from None
        return value

    def output(self, given: dict[str, list[str]]) -> str:
        """Also checks that there is something to measure, before anything runs."""
        asked, read = given.get("models") and given.get("prompts"), given.get("models") and given.get("texts")
        searched = given.get("indexes") and given.get("prompts")
        if not (asked or read or given.get("candidates") or searched):
            raise UserError(
                "evaluate needs `models` and `prompts` (or `texts`), `indexes` and `prompts`, or `candidates` that were sampled before."
            )
        if given.get("models") and not (asked or read):
            raise UserError("evaluate got `models` and neither `prompts` to answer nor `texts` to read.")
        return super().output(given)

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return None
