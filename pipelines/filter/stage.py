"""`filter`: documents -> the documents that pass every rule. What a rule removes is kept, with the rule and the value."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from engine.errors import UserError, nearest
from engine.stage.stage import Port, Stage, port
from pipelines.filter.heuristics import SETS, Rule
from pipelines.filter.language_codes import LANGUAGES

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight

PersonalData = Literal["key", "email", "iban", "card", "ip", "phone"]
Action = Literal["remove", "mask", "count"]


class Filter(Stage):
    """Keep the documents that pass every rule.

    In this order: lines are removed (`lines`); the sets of `rules`, bounds on length, `languages`, `min_quality` and the
    rules of `keep` are tried; in what is left, personal data is looked for (`pii`). A removed row carries the first rule
    it broke as `reason` and the value that broke it as `detail`. A row whose text was changed has a new id and the old one
    as its parent.
    """

    takes: ClassVar[dict[str, Port]] = {
        "documents": port("Document", many=True),
        "good": port("Document", many=True, optional=True),
        "bad": port("Document", many=True, optional=True),
    }
    gives: ClassVar[str] = "Document"
    phase: ClassVar[str] = "curation"
    work: ClassVar[str] = "pipelines.filter.work:sift"
    narrows: ClassVar[bool] = True
    version: ClassVar[int] = 4

    rules: list[Literal["gopher_quality", "gopher_repetition", "c4", "fineweb"]] = Field(
        default_factory=lambda: [], description="Published sets of rules, with their published constants."
    )
    bounds: dict[str, tuple[float | None, float | None]] = Field(
        default_factory=lambda: {},
        description="Other bounds for rules of these sets, by rule: `gopher_words: [20, null]`. null is no bound.",
    )
    lines: Literal["c4", "fineweb"] | None = Field(
        None,
        description="Remove lines by C4's rules (no final punctuation, fewer than five words, javascript, policies) and "
        "citation marks; `fineweb`: without the rule on punctuation.",
    )
    min_words: int | None = Field(None, ge=0, description="Fewest words of a document that stays.")
    max_words: int | None = Field(None, ge=0, description="Most words of a document that stays.")
    min_chars: int | None = Field(None, ge=0, description="Fewest characters of a document that stays.")
    max_chars: int | None = Field(None, ge=0, description="Most characters of a document that stays.")
    languages: list[str] = Field(
        default_factory=lambda: [],
        description="The languages to keep, as ISO 639 codes (fastText's lid.176): `[en, de]`.",
    )
    min_language_score: float = Field(0.65, ge=0, le=1, description="The model's probability; .65 is FineWeb's.")
    min_quality: float | None = Field(
        None,
        ge=0,
        le=1,
        description="With the inputs `good` and `bad`: the least score of a classifier trained on them. Without, documents "
        "are scored and none is removed.",
    )
    keep: dict[str, str] = Field(
        default_factory=lambda: {},
        description="Rules of your own: name -> a Polars SQL expression over the columns and statistics, true for what "
        "stays: `short_enough: LENGTH(text) < 400 AND words > 5`.",
    )
    pii: dict[PersonalData, Action] = Field(
        default_factory=lambda: {},
        description="What to do about each kind of personal data: `remove` the document, `mask` it (`<EMAIL>`), or `count`.",
    )
    phone_region: str | None = Field(
        None, description="A country (`US`) whose phone numbers are found in their national form, too."
    )

    @field_validator("languages")
    @classmethod
    def _languages_are_known(cls, codes: list[str]) -> list[str]:
        for code in codes:
            if code not in LANGUAGES:
                raise ValueError(f"`{code}` is no language of lid.176.{nearest(code, LANGUAGES)}")
        return codes

    @field_validator("phone_region")
    @classmethod
    def _region_is_known(cls, region: str | None) -> str | None:
        if region is not None:
            import phonenumbers  # most recipes name no country

            if region not in phonenumbers.SUPPORTED_REGIONS:
                raise ValueError(f"`{region}` is no country.{nearest(region, phonenumbers.SUPPORTED_REGIONS)}")
        return region

    @model_validator(mode="after")
    def _rules_are_known(self) -> Filter:
        try:
            self.compile()
        except UserError as error:
            raise ValueError(str(error)) from None  # so that the recipe's error names its line
        return self

    def sieve(self) -> str | None:
        return "documents"

    def check(self, known: Preflight) -> None:
        self.check_examples(bool(known.inputs.get("good")), bool(known.inputs.get("bad")))
        if self.keep:
            from pipelines.filter import keep

            keep.check(self.keep, bool(self.languages), known)

    def check_examples(self, good: bool, bad: bool) -> None:
        """Whether the inputs that a classifier learns from are both there, or none where none is asked for.

        Raises:
            UserError: one is missing.
        """
        if self.min_quality is not None and not good and not bad:
            raise UserError("`min_quality` needs the inputs `good` and `bad`: two sets of example documents.")
        if good != bad:
            raise UserError(
                f"a quality classifier learns from both `good` and `bad`; `{'bad' if good else 'good'}` is missing."
            )

    def compile(self) -> list[Rule]:
        """The rules over statistics, in order.

        Raises:
            UserError: `bounds` names a rule that is in none of the sets.
        """
        rules = [rule for name in self.rules for rule in SETS[name]]
        known = [rule.name for rule in rules]
        for name in self.bounds:
            if name not in known:
                there = f"Rules: {', '.join(known)}." if known else "`rules` names no set."
                raise UserError(
                    f"`bounds` names `{name}`, which is no rule of these sets.{nearest(name, known)} {there}"
                )
        rules = [rule.bounded(*self.bounds[rule.name]) if rule.name in self.bounds else rule for rule in rules]
        own = (
            ("min_words", "words", self.min_words, None),
            ("max_words", "words", None, self.max_words),
            ("min_chars", "characters", self.min_chars, None),
            ("max_chars", "characters", None, self.max_chars),
        )
        for name, statistic, low, high in own:
            if low is not None or high is not None:
                rules.append(Rule(name, statistic).bounded(low, high))
        return rules
