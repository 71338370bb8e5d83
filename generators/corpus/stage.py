"""`corpus`: documents made from records.

A record is a Document whose metadata holds columns (`{"country": "France", "capital": "Paris"}`). Every document draws
some records and, for each, one of the templates; without a model what they render to is the document, with a model it
is what the model is asked, and the answer is the document. Document number i depends on the seed and i alone, so the
corpus is the same however the work is cut.

Instead of templates there are styles, for text to start from (records with `text`):
- `textbook`, `story`, `wiki`, `dialogue`: new text on the subject, for every audience and by every persona of a grid, as in
  Cosmopedia (Ben Allal et al., 2024);
- `wrap_*`: the four rephrasings of WRAP (Maini et al., 2024, arXiv:2401.16380);
- `nemotron_*`: those of Nemotron-CC (Su et al., 2024, arXiv:2412.02595): Wikipedia-like for poor text, the others for good.
No record meets the same cell of the grid twice before it has met all, and all cells get their share.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import Field, field_validator, model_validator

from engine.stage.stage import NotIdentity, Stage, port
from generators.backends.answerer import check_answerer
from generators.backends.protocol import EngineName, NucleusShare
from generators.backends.replica_bounds import ReplicaCount
from generators.backends.server.server_check import check_servers
from generators.backends.server.settings import ServerSettings
from generators.corpus.styles import REPHRASED, Style
from generators.text import own_templates
from generators.text.own_templates import OwnTemplates

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight
    from generators.text.templates import Template

ALONE = {"text": "the record's text, or its columns where it has none"}
WITH_READERS = {**ALONE, "audience": "whom to write for, or none", "persona": "who writes, or none"}


class Corpus(Stage):
    """Make documents from records and templates, written out by a model if there is one."""

    takes = {"records": port("Document", many=True), "model": port("Model", optional=True)}
    gives = "Document"
    phase = "generation"
    work = "generators.corpus.work:make"
    residents = ("model",)
    whole = ("records",)
    random = True
    version = 2
    template_variables = {
        style: WITH_READERS if not style.startswith(REPHRASED) else ALONE for style in get_args(Style)
    }

    documents: int = Field(ge=1, description="How many documents to make.")
    records: int = Field(1, ge=1, description="Records drawn for a document, each at most once.")
    templates: list[str] = Field([], description="Jinja; one is drawn for each record. Sees its metadata and `text`.")
    separator: str = Field("\n", description="Stands between the rendered records of a document.")
    styles: list[Style] = Field([], description="Instead of templates: what a model makes of the records' texts.")
    audiences: list[str] = Field([], description="Whom to write for, e.g. `college students`; each with every style.")
    personas: list[str] = Field([], description="Who writes, e.g. `a nurse in a village`; each for every audience.")
    temperature: float = Field(1.0, ge=0, le=10, description="0 is greedy.")
    top_p: NucleusShare = 1.0
    max_tokens: int = Field(512, ge=1, description="Longest document a model writes, in tokens.")
    engine: EngineName = Field(
        "vllm", description="What runs the model: vllm, or transformers: slow, but runs anywhere."
    )
    server: ServerSettings | None = Field(
        None, description="An OpenAI-compatible server that writes instead of a model."
    )
    partition: int = Field(256, ge=1, description="Documents a partition, with a model.")
    replicas: Annotated[ReplicaCount, NotIdentity] = Field(
        1, description="Engines that share the partitions: a number, or `{min: 1, max: 8}`, as there is work."
    )
    template: OwnTemplates = {}

    @field_validator("templates")
    @classmethod
    def _compile(cls, value: list[str]) -> list[str]:
        from generators.text.templates import checked

        return checked(value, "templates") if value else value

    @model_validator(mode="after")
    def _check_styles(self) -> Corpus:
        if bool(self.templates) == bool(self.styles):
            raise ValueError("documents are made from `templates` (at least one template is needed) or from `styles`")
        if self.styles and self.records != 1:
            raise ValueError(f"a document in a style is made from one record, not from `records: {self.records}`")
        if (self.audiences or self.personas) and all(style.startswith(REPHRASED) for style in self.styles):
            raise ValueError("`audiences` and `personas` are for the styles textbook, story, wiki and dialogue")
        if self.template and not self.styles:
            raise ValueError("`template` is for the prompts of `styles`; here `templates` are the prompts")
        own_templates.check_inline(self.template, self.prompts(), self.template_variables)
        return self

    def prompts(self) -> list[str]:
        """The prompts that are sent, by name: the styles."""
        return list(dict.fromkeys(self.styles))

    def sources(self, base: str) -> dict[str, str]:
        return own_templates.sources(self.template, self.prompts(), base)

    def check(self, known: Preflight) -> None:
        from generators.text.templates import check_records, compiled

        self.style_templates(known.base)
        check_records(compiled(self.templates, "templates"), known)
        models = len(known.inputs.get("model", []))
        if self.styles or self.server or models:
            check_answerer(models, int(self.server is not None))
        check_servers(known, self.server)

    def asks(self) -> bool:
        return self.server is not None

    def style_templates(self, base: str | Path) -> dict[str, Template]:
        """The recipe's own templates, by style."""
        return own_templates.load(self.template, self.prompts(), self.template_variables, base)

    def identity(self) -> dict[str, Any]:
        identity = {**super().identity(), "server": self.server.identity() if self.server else None}
        dropped = ("templates", "separator", "records") if self.styles else ("styles", "audiences", "personas")
        identity.pop("template")
        identity |= own_templates.identity(self.template, self.prompts())
        return {name: value for name, value in identity.items() if name not in dropped}

    def preview(self, rows: int) -> Corpus:
        return self.model_copy(update={"documents": min(rows, self.documents)})

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return self.documents
