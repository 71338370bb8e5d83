"""`grounded`: questions answered from retrieved documents, with citations (retrieval-augmented generation; Lewis et al., 2020,
arXiv:2005.11401).

The rows are Candidates to the same prompts as any other model's, so that what retrieval gives can be judged beside what
fine-tuning gives: `judge` takes both. The model is told to cite passages as [1], [2]; what it cites is kept as ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from engine.errors import UserError
from engine.stage.stage import NotIdentity, Stage, port
from generators.backends.answerer import check_answerer
from generators.backends.protocol import EngineName, NucleusShare
from generators.backends.replica_bounds import ReplicaCount
from generators.backends.server.server_check import check_servers
from generators.backends.server.settings import ServerSettings
from generators.text import own_templates
from generators.text.own_templates import OwnTemplates

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight
    from generators.text.templates import Template

PROMPTS = ("answer",)


class Grounded(Stage):
    """Answer questions from documents: retrieve passages, show them to the model, keep what it cites."""

    takes = {
        "documents": port("Document", many=True, optional=True),
        "index": port("Passage", optional=True),
        "prompts": port("Prompt", "Conversation", many=True),
        "model": port("Model", optional=True),
    }
    gives = "Candidate"
    phase = "generation"
    work = "generators.grounded.work:answer"
    residents = ("model",)
    whole = ("documents", "index")
    random = True
    version = 5
    template_variables = {
        "answer": {
            "question": "what the user last said",
            "passages": "texts of the passages found, the best first; none where nothing was found",
        }
    }

    k: int = Field(4, ge=1, description="Passages shown with a question.")
    words: int = Field(
        150,
        ge=1,
        description="Words of a passage, by white space; of a script without spaces, letters. An `index` has its own.",
    )
    overlap: int = Field(30, ge=0, description="Words that a passage has in common with the one before.")
    n: int = Field(1, ge=1, description="Answers a question.")
    temperature: float = Field(0.0, ge=0, le=10, description="0 is greedy.")
    top_p: NucleusShare = 1.0
    max_tokens: int = Field(256, ge=1, description="Longest answer, in tokens.")
    partition: int = Field(64, ge=1, description="Questions a partition.")
    replicas: Annotated[ReplicaCount, NotIdentity] = Field(
        1, description="Engines that share the partitions: a number, or `{min: 1, max: 8}`, as there is work."
    )
    engine: EngineName = Field("vllm", description="vllm, or transformers: slow, but runs anywhere.")
    server: ServerSettings | None = Field(
        None, description="An OpenAI-compatible server that answers instead of a model."
    )
    template: OwnTemplates = {}

    @model_validator(mode="after")
    def _check(self) -> Grounded:
        if self.overlap >= self.words:
            raise ValueError(f"`overlap: {self.overlap}` should be less than `words: {self.words}`")
        own_templates.check_inline(self.template, PROMPTS, self.template_variables)
        return self

    def asks(self) -> bool:
        return self.server is not None

    def identity(self) -> dict[str, Any]:
        identity = {**super().identity(), "server": self.server.identity() if self.server else None}
        identity.pop("template")
        return {**identity, **own_templates.identity(self.template, PROMPTS)}

    def sources(self, base: str) -> dict[str, str]:
        return own_templates.sources(self.template, PROMPTS, base)

    def check(self, known: Preflight) -> None:
        self.templates(known.base)
        check_answerer(len(known.inputs.get("model", [])), int(self.server is not None))
        check_servers(known, self.server)
        self.require_passages(len(known.inputs.get("documents", [])), len(known.inputs.get("index", [])))

    def require_passages(self, documents: int, indexes: int) -> None:
        """Documents or an index of them.

        Raises:
            UserError: there is neither, or both.
        """
        if bool(documents) == bool(indexes):
            raise UserError(
                "where are the passages to come from? Expected either `documents` or an `index` of them among the inputs "
                f"(`from: {{documents: ...}}`), found {'both' if documents else 'neither'}."
            )

    def templates(self, base: str | Path) -> dict[str, Template]:
        """The recipe's own template, if it gives one."""
        return own_templates.load(self.template, PROMPTS, self.template_variables, base)

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return self.n * rows["prompts"]
