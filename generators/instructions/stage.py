"""`instructions`: conversations, from templates over records or from a model by a published method.

Without `method`, questions and answers are templates over a record's metadata; which ones a record gets is drawn by its own seed. A
record's split is its rank by a digest of its id among all records that came in, so the counts are exact, and stages
that take different splits of the same records never share one, whatever their seeds, templates and numbers.

With `method`, a model makes them; each method is a file in `methods/`, and `rounds.py` is the loop that they share: what is
new is kept, until the number asked for is there.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import Field, field_validator, model_validator

from engine.errors import UserError
from engine.stage.stage import Stage, port
from generators.backends.answerer import check_answerer
from generators.backends.protocol import EngineName, NucleusShare
from generators.backends.server.server_check import check_servers
from generators.backends.server.settings import ServerSettings
from generators.drafts.content import CONTENT
from generators.instructions.method import Method
from generators.instructions.methods.backtranslation import Backtranslation
from generators.instructions.methods.code import Code
from generators.instructions.methods.constitutional import Constitutional
from generators.instructions.methods.evol_instruct import EvolInstruct
from generators.instructions.methods.magpie import Magpie
from generators.instructions.methods.mathematics import Mathematics
from generators.instructions.methods.multi_turn import MultiTurn
from generators.instructions.methods.personas import Personas
from generators.instructions.methods.self_instruct import SelfInstruct
from generators.instructions.methods.tool_calls import ToolCalls
from generators.instructions.novelty_rule import Novelty
from generators.rules.rule import EQUALITY, PROGRAMS
from generators.text import own_templates
from generators.text.own_templates import OwnTemplates

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight
    from generators.text.templates import Template

AnyMethod = Annotated[
    SelfInstruct | EvolInstruct | Magpie | Personas | Backtranslation | MultiTurn | ToolCalls | Code | Mathematics
    | Constitutional,
    Field(discriminator="name"),
]  # fmt: skip
METHODS: tuple[type[Method], ...] = get_args(get_args(AnyMethod)[0])
# What belongs to templates, and what to a method. Neither is part of the other's identity.
TEMPLATES = ("questions", "answers", "reference", "system", "per_record", "split", "take")
SYNTHESIS = ("count", "novelty", "tries", "temperature", "top_p", "max_tokens", "partition", "engine", "server",
             "template")  # fmt: skip
NO_RECORDS = "templates need records to render: `from: {records: ...}`."


class Instructions(Stage):
    """Make conversations: from records by templates, or with a model by a published method."""

    takes = {
        "records": port("Document", many=True, optional=True),
        "seeds": port("Conversation", "Prompt", "Candidate", many=True, optional=True),
        "known": port("Conversation", "Prompt", many=True, optional=True),
        "model": port("Model", optional=True),
    }
    gives = "Conversation"
    phase = "generation"
    work = "generators.instructions.work:make"
    residents = ("model",)
    whole = ("records", "seeds", "known")
    random = True
    template_variables = {
        f"{method.model_fields['name'].annotation.__args__[0]}.{prompt}": variables  # pyright: ignore
        for method in METHODS
        for prompt, variables in method.template_variables.items()
    }

    questions: list[str] = Field([], description="Jinja; what the user says. Sees the record's metadata and `text`.")
    answers: list[str] = Field([], description="Jinja; what the assistant says. Without any, only questions are made.")
    reference: str | None = Field(None, description="Jinja; the known right answer, for rules and evaluation.")
    system: str | None = Field(None, description="Jinja; a system message before the question.")
    per_record: int = Field(1, ge=1, description="Conversations a record, each another question and answer.")
    split: dict[str, float] = Field({"all": 1.0}, description="Share of the records in each split; they add up to 1.")
    take: str | None = Field(None, description="The split to make conversations of; all records if left out.")

    method: AnyMethod | None = Field(
        None, description="Have a model make them: `{name: self_instruct}`, and its settings."
    )
    count: int | None = Field(None, ge=1, description="Conversations to deliver; where inputs end, all they give.")
    novelty: Novelty | None = Field(
        None,
        description="What is new enough to keep; if left out, ROUGE-L below 0.7 (for what goes on from the seeds: no copies).",
    )
    tries: float = Field(20, gt=0, description="Most drafts, as a multiple of `count`.")
    temperature: float = Field(
        0.7, ge=0, le=10, description="Of the model, where a method does not say otherwise; 0 is greedy."
    )
    top_p: NucleusShare = 1.0
    max_tokens: int = Field(1024, ge=1, description="Longest thing the model says in one step, in tokens.")
    partition: int = Field(128, ge=1, description="Most drafts in one round: one batch of the engine, one file.")
    engine: EngineName = Field(
        "vllm", description="What runs the model: vllm, or transformers: slow, but runs anywhere."
    )
    server: ServerSettings | None = Field(None, description="An OpenAI-compatible server instead of a model.")
    template: OwnTemplates = {}

    @field_validator("questions", "answers")
    @classmethod
    def _compile(cls, value: list[str], info: Any) -> list[str]:
        from generators.text.templates import checked

        return checked(value, info.field_name) if value else value

    @field_validator("reference", "system")
    @classmethod
    def _compile_one(cls, value: str | None, info: Any) -> str | None:
        from generators.text.templates import checked

        return checked([value], info.field_name)[0] if value is not None else None

    @model_validator(mode="after")
    def _check_split(self) -> Instructions:
        fields = type(self).model_fields
        others = SYNTHESIS if self.method is None else TEMPLATES
        foreign = [name for name in others if getattr(self, name) != fields[name].get_default()]
        if foreign and self.method is None:
            raise ValueError(f"`{foreign[0]}` needs a `method`: templates ask no model")
        if foreign:
            raise ValueError(f"`{foreign[0]}` is for templates, not for `method: {self.method.name}`")  # pyright: ignore
        if self.method is not None:
            own_templates.check_inline(self.template, self.prompts(), self.method.template_variables)
            return self
        if not self.questions:
            raise ValueError("nothing to make: at least one template in `questions` is needed, or a `method`")
        if any(share <= 0 for share in self.split.values()) or not math.isclose(sum(self.split.values()), 1):
            raise ValueError(f"`split` needs shares above 0 that add up to 1, found {self.split}")
        if self.take is not None and self.take not in self.split:
            raise ValueError(f"`take: {self.take}` is not in `split`, which has {', '.join(self.split)}")
        pairs = len(self.questions) * max(1, len(self.answers))
        if self.per_record > pairs:
            raise ValueError(f"`per_record: {self.per_record}` asks for more than the {pairs} pairs of templates")
        return self

    def asks(self) -> bool:
        return self.server is not None

    def identity(self) -> dict[str, Any]:
        identity = super().identity()
        dropped = [*SYNTHESIS, "method"] if self.method is None else TEMPLATES
        if self.server:
            identity["server"] = self.server.identity()
        # 2: calls of tools are messages of their own, and a thought is none of an answer. 3: words are those of UAX #29.
        if self.method is not None:
            identity["drafts"] = 3
        if isinstance(self.method, Mathematics):  # its votes are counted by which answers are equal
            identity["equality"] = EQUALITY
        if isinstance(self.method, Mathematics | Code | ToolCalls):
            identity["programs"] = PROGRAMS
        if self.method is not None:
            identity["content"] = CONTENT
            identity.pop("template")
            identity |= own_templates.identity(self.template, self.prompts())
        return {name: value for name, value in identity.items() if name not in dropped}

    def prompts(self) -> list[str]:
        """The prompts that the method sends, by name."""
        return list(self.method.template_variables) if isinstance(self.method, Method) else []

    def sources(self, base: str) -> dict[str, str]:
        return own_templates.sources(self.template, self.prompts(), base)

    def check(self, known: Preflight) -> None:
        from generators.text.templates import check_records

        self.prompt_templates(known.base)
        check_records([one for group in self.record_templates().values() for one in group], known)
        given = {port for port, inputs in known.inputs.items() if inputs}
        if self.method is None:
            if "records" not in given:
                raise UserError(NO_RECORDS)
            return
        self.method.require(given, self.server is not None)
        check_answerer(len(known.inputs.get("model", [])), int(self.server is not None))
        check_servers(known, self.server)

    def record_templates(self) -> dict[str, list[Template]]:
        """What is rendered from a record where there is no method, by what it becomes."""
        from generators.text.templates import compiled

        return {
            "question": compiled(self.questions, "questions"),
            "answer": compiled(self.answers, "answers"),
            "reference": compiled([self.reference] if self.reference is not None else [], "reference"),
            "system": compiled([self.system] if self.system is not None else [], "system"),
        }

    def prompt_templates(self, base: str | Path) -> dict[str, Template]:
        """The recipe's own templates for the method's prompts, by the names that the method asks by."""
        if self.method is None:
            return {}
        made = own_templates.load(self.template, self.prompts(), self.method.template_variables, base)
        folder = self.method.folder or self.method.name
        return {f"{folder}/{prompt}": one for prompt, one in made.items()}

    def preview(self, rows: int) -> Instructions:
        return self.model_copy(update={"count": min(rows, self.count or rows)}) if self.method else self

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return self.count if self.method else None
