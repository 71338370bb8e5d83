"""`filter`: documents -> the documents that pass every rule. What a rule removes is kept, with the rule and the value."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from engine.errors import UserError, nearest
from engine.expression import column
from engine.stage.job import Job
from engine.stage.stage import Port, Stage, port
from engine.store.schema import row_id
from pipelines.filter.heuristics import LINE_SETS, SETS, Rule, clean_lines
from pipelines.filter.histograms import Histograms
from pipelines.filter.language import identify
from pipelines.filter.language import languages as known_languages
from pipelines.filter.pii import Kind, mask, may_hold
from pipelines.filter.pii import find as find_pii
from pipelines.filter.quality import Classifier, train
from pipelines.filter.statistics import STATISTICS, SUBSTRINGS, measure

Action = Literal["remove", "mask", "count"]
ADDED = ("language", "language_score", "quality")  # columns that a kept row gets, where they were asked for


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
    narrows: ClassVar[bool] = True
    version: ClassVar[int] = 2

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
    min_words: int | None = Field(None, ge=0)
    max_words: int | None = Field(None, ge=0)
    min_chars: int | None = Field(None, ge=0)
    max_chars: int | None = Field(None, ge=0)
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
    pii: dict[Kind, Action] = Field(
        default_factory=lambda: {},
        description="What to do about each kind of personal data: `remove` the document, `mask` it (`<EMAIL>`), or `count`.",
    )
    phone_region: str | None = Field(
        None, description="A country (`US`) whose phone numbers are found in their national form, too."
    )

    @field_validator("languages")
    @classmethod
    def _languages_are_known(cls, given: list[str]) -> list[str]:
        for code in given:
            if code not in known_languages():
                raise ValueError(f"`{code}` is no language of lid.176.{nearest(code, known_languages())}")
        return given

    @field_validator("phone_region")
    @classmethod
    def _region_is_known(cls, given: str | None) -> str | None:
        if given is not None:
            import phonenumbers

            if given not in phonenumbers.SUPPORTED_REGIONS:
                raise ValueError(f"`{given}` is no country.{nearest(given, phonenumbers.SUPPORTED_REGIONS)}")
        return given

    @model_validator(mode="after")
    def _rules_are_known(self) -> Filter:
        try:
            self.compile()
        except UserError as error:
            raise ValueError(str(error)) from None  # so that the recipe's error names its line
        return self

    def run(self, job: Job) -> None:
        rules = self.compile()
        classifier = self._classifier(job)
        told = job.scratch / "told"
        told.mkdir(exist_ok=True)
        for part in job.parts("documents"):
            kept, rejected, facts = self.sift(part.table, rules, classifier)
            # Beside the part and before it, so that a run that was killed and goes on still tells of all of them.
            (told / f"{part.name}.json").write_text(json.dumps(facts.to_json()))
            part.commit(kept, rejected)
        total = Told()
        for file in sorted(told.glob("*.json")):
            total.add(Told.from_json(json.loads(file.read_text())))
        (job.output / "histograms.json").write_text(
            json.dumps(total.histograms.to_json(_bounds(rules, self)), indent=1)
        )
        job.summary(documents=total.rows, **total.summary(self))
        if classifier is not None:
            job.summary(classifier=classifier.facts)

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

    def _classifier(self, job: Job) -> Classifier | None:
        good, bad = job.all("good"), job.all("bad")
        if not good and not bad:
            if self.min_quality is not None:
                raise UserError("`min_quality` needs the inputs `good` and `bad`: two sets of example documents.")
            return None
        if not good or not bad:
            raise UserError(
                f"a quality classifier learns from both `good` and `bad`; `{'bad' if good else 'good'}` is missing."
            )
        one, other = ((b.column("text") for a in side for b in a.batches(columns=["text"])) for side in (good, bad))
        made = train(one, other)
        (job.output / "classifier.parquet").write_bytes(made.encode())
        return made

    def sift(
        self, table: pa.Table, rules: list[Rule], classifier: Classifier | None = None
    ) -> tuple[pa.Table, pa.Table, Told]:
        """(kept rows, rejected rows, what there was to tell) of a table of documents."""
        told = Told(rows=len(table))
        verdict = _Verdict(len(table), told.broken)
        if self.lines:
            table = self._clean(table, verdict, told)
        used = {rule.statistic for rule in rules} | {n for n in STATISTICS for e in self.keep.values() if n in e}
        measured = measure(table.column("text"), not used.isdisjoint(SUBSTRINGS))
        for rule in rules:
            values = measured.column(rule.statistic).to_numpy()
            verdict.remove(rule.name, (values >= rule.low) & (values <= rule.high), values)
        if self.languages:
            table = self._by_language(table, verdict, told)
        if classifier is not None:
            scores = classifier.score(table.column("text"))
            table = _put(table, "quality", pa.array(scores))
            if self.min_quality is not None:
                verdict.remove("quality", scores >= self.min_quality, scores)
        if self.keep:
            frame = cast(pl.DataFrame, pl.from_arrow(table))
            extra = [name for name in measured.column_names if name not in frame.columns]
            frame = frame.hstack(cast(pl.DataFrame, pl.from_arrow(measured.select(extra))))
            for name, expression in self.keep.items():
                passes, values = _own_rule(name, expression, frame)
                verdict.remove(name, passes, values)
        if self.pii:
            table = self._without_pii(table, verdict, told)
        stays = verdict.stays
        shown = {name: measured.column(name).to_numpy() for name in ("words", *sorted(used))}
        shown |= {name: table.column(name).to_numpy() for name in ADDED[1:] if name in table.column_names}
        for name, values in shown.items():
            told.histograms.add(name, values, stays)
        gone = pa.array(~stays)
        rejected = table.filter(gone)
        for name, values in (("reason", verdict.reason), ("detail", verdict.detail)):
            rejected = _put(rejected, name, pa.array(values[~stays], pa.string()))
        return table.filter(pa.array(stays)), rejected, told

    def _clean(self, table: pa.Table, verdict: _Verdict, told: Told) -> pa.Table:
        assert self.lines is not None
        texts: list[str] = table.column("text").to_pylist()
        cleaned: list[str] = []
        for text in texts:
            kept, removed = clean_lines(text, LINE_SETS[self.lines])
            told.lines.update(removed)
            # A document without a line left is shown as it was.
            cleaned.append(kept)
        left = np.array([bool(text) for text in cleaned], bool)
        lost = np.array([f"{text.count(chr(10)) + 1} lines, none left" for text in texts], object)
        verdict.remove("no_lines", left, lost)
        return _edited(table, [new or old for new, old in zip(cleaned, texts, strict=True)])

    def _by_language(self, table: pa.Table, verdict: _Verdict, told: Told) -> pa.Table:
        """Only of rows that are still there: a tenth of the speed of all statistics together."""
        there = np.flatnonzero(verdict.stays)
        found = identify(table.column("text").take(pa.array(there)).to_pylist())
        labels, scores = np.full(len(table), None, object), np.full(len(table), np.nan)
        for index, (label, score) in zip(there, found, strict=True):
            labels[index], scores[index] = label, score
            told.languages[label] += 1
        shown = np.array([f"{label} {score:.2f}" for label, score in zip(labels, scores, strict=True)], object)
        verdict.remove("language", np.isin(labels.astype(str), self.languages), shown)
        verdict.remove("language_score", ~(scores < self.min_language_score), shown)
        known = pa.array(scores, mask=np.isnan(scores))
        return _put(_put(table, "language", pa.array(labels, pa.string())), "language_score", known)

    def _without_pii(self, table: pa.Table, verdict: _Verdict, told: Told) -> pa.Table:
        texts: list[str] = table.column("text").to_pylist()
        signs = may_hold(cast(pl.Series, pl.from_arrow(table.column("text"))), self.pii)
        for index in np.flatnonzero(verdict.stays & np.any(list(signs.values()), axis=0)):
            found = find_pii(texts[index], [kind for kind, there in signs.items() if there[index]], self.phone_region)
            if not found:
                continue
            kinds = Counter(item.kind for item in found)
            for kind, count in kinds.items():
                told.pii[kind] += count
                told.pii_documents[kind] += 1
            gone = next((kind for kind in self.pii if kinds[kind] and self.pii[kind] == "remove"), None)
            if gone is not None:
                verdict.remove_one(index, f"pii_{gone}", f"{kinds[gone]} found")
                continue
            texts[index] = mask(texts[index], [item for item in found if self.pii[item.kind] == "mask"])
        return _edited(table, texts)


class _Verdict:
    """For each row the first rule it broke and the value that broke it; and how many rows break each rule."""

    def __init__(self, count: int, broken: Counter[str]) -> None:
        self.stays = np.ones(count, bool)
        self.reason = np.full(count, None, object)
        self.detail = np.full(count, None, object)
        self.broken = broken

    def remove(self, name: str, passes: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> None:
        self.broken[name] += int((~passes).sum())
        for index in np.flatnonzero(~passes & self.stays):
            self.reason[index], self.detail[index] = name, _shown(values[index])
        self.stays &= passes

    def remove_one(self, index: int, name: str, value: str) -> None:
        self.broken[name] += 1
        self.reason[index], self.detail[index], self.stays[index] = name, value, False


@dataclass
class Told:
    """What a filter tells of the documents it saw.

    Attributes:
        broken: rule -> documents that break it, whether or not another rule removed them before.
        lines: rule -> lines removed.
        pii, pii_documents: kind -> how many were found, in how many documents.
        languages: of the documents that were still there, how many are in each.
    """

    rows: int = 0
    broken: Counter[str] = field(default_factory=Counter[str])
    lines: Counter[str] = field(default_factory=Counter[str])
    pii: Counter[str] = field(default_factory=Counter[str])
    pii_documents: Counter[str] = field(default_factory=Counter[str])
    languages: Counter[str] = field(default_factory=Counter[str])
    histograms: Histograms = field(default_factory=Histograms)

    def add(self, other: Told) -> None:
        self.rows += other.rows
        self.broken.update(other.broken)
        self.lines.update(other.lines)
        self.pii.update(other.pii)
        self.pii_documents.update(other.pii_documents)
        self.languages.update(other.languages)
        self.histograms.merge(other.histograms)

    def summary(self, stage: Filter) -> dict[str, Any]:
        facts: dict[str, Any] = {"break_rule": dict(self.broken.most_common())}
        if stage.lines:
            facts["lines_removed"] = dict(self.lines.most_common())
        if stage.languages:
            facts["languages_found"] = dict(self.languages.most_common(20))
        if stage.pii:
            facts["pii_found"] = {
                kind: {"action": action, "found": self.pii[kind], "documents": self.pii_documents[kind]}
                for kind, action in stage.pii.items()
            }
        return facts

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "histograms": self.histograms.to_json({})}

    @staticmethod
    def from_json(given: dict[str, Any]) -> Told:
        counters = {k: Counter[str](v) for k, v in given.items() if k not in ("rows", "histograms")}
        return Told(given["rows"], **counters, histograms=Histograms.from_json(given["histograms"]))


def _own_rule(name: str, expression: str, frame: pl.DataFrame) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    where = f"`keep.{name}`"
    verdict = column(expression, frame, where)
    if verdict.dtype != pl.Boolean:
        raise UserError(f"{where}: `{expression}` gives {verdict.dtype}, expected true or false.")
    if len(verdict) != len(frame):
        raise UserError(f"{where}: `{expression}` gives {len(verdict)} values for {len(frame)} rows.")
    values = np.array(["null" if v is None else expression for v in verdict], dtype=object)
    return verdict.fill_null(False).to_numpy(), values


def _bounds(rules: list[Rule], stage: Filter) -> dict[str, tuple[float, float]]:
    """The strictest bounds on each statistic."""
    bounds: dict[str, tuple[float, float]] = {}
    for rule in rules:
        low, high = bounds.get(rule.statistic, (-np.inf, np.inf))
        bounds[rule.statistic] = max(low, rule.low), min(high, rule.high)
    bounds["language_score"] = stage.min_language_score, np.inf
    bounds["quality"] = -np.inf if stage.min_quality is None else stage.min_quality, np.inf
    return bounds


def _edited(table: pa.Table, texts: list[str]) -> pa.Table:
    """The table with these texts; a row whose text is another one is another row, made from the one it was."""
    before: list[str] = table.column("text").to_pylist()
    ids, parents = table.column("id").to_pylist(), table.column("parents").to_pylist()
    for i, (old, new) in enumerate(zip(before, texts, strict=True)):
        if old != new:
            ids[i], parents[i] = row_id("Document", ids[i], new), [ids[i]]
    table = _put(table, "text", pa.array(texts, table.schema.field("text").type))
    table = _put(table, "id", pa.array(ids, pa.string()))
    return _put(table, "parents", pa.array(parents, pa.list_(pa.string())))


def _put(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)
