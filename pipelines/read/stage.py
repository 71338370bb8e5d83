"""`read`: files -> documents, or rows of another kind. Every document keeps the file and the offset it came from; what can't be
read is kept with a reason."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from engine.stage.stage import NotIdentity, Port, Stage

Format = Literal[
    "auto", "text", "markdown", "html", "pdf", "code", "jsonl", "json", "csv", "parquet", "arrow", "python"
]

MOST_BYTES = 256 << 20


class Read(Stage):
    """Read files as documents, or as rows of another kind.

    A document that is not UTF-8, is empty, longer than `max_bytes` or holds NUL bytes, a line that is no JSON, a file
    that can't be opened: each becomes a rejected row with the reason, and reading goes on.
    """

    takes: ClassVar[dict[str, Port]] = {}
    gives: ClassVar[str] = "Document"
    phase: ClassVar[str] = "curation"
    work: ClassVar[str] = "pipelines.read.work:read"
    narrows: ClassVar[bool] = True
    version: ClassVar[int] = 2

    paths: Annotated[list[str], NotIdentity] = Field(
        min_length=1,
        description="Files, folders or globs relative to the recipe's folder, URLs, `hub:NAME?config=C&split=S` for a "
        "Hugging Face dataset (of the hub, or a folder), or `stdlib:GLOB` for the running interpreter's standard library. "
        "What counts for the identity is the content of the files, by relative path.",
    )
    exclude: Annotated[list[str], NotIdentity] = Field(
        default_factory=lambda: [], description="Globs over relative paths to leave out; `*` also matches `/`."
    )
    format: Format = Field(
        "auto",
        description="`auto` goes by suffix; .gz, .zst and .bz2 are unpacked. `python` takes docstrings and long string "
        "literals, `code` whole source files.",
    )
    encoding: str = Field(
        "utf-8",
        description="Of text, code, jsonl and csv: a codec, or `detect`: UTF-8, or else what the bytes look like.",
    )
    text: str | None = Field(
        None,
        description="For rows (jsonl, json, csv, parquet, arrow): the column with the text (`text` if not given), or a Jinja template "
        "over the columns. The columns go to `metadata`, all but one that is the text itself.",
    )
    rows: Literal["Prompt", "Conversation", "Candidate", "Ranking", "Preference", "Verdict"] | None = Field(
        None, description="Read rows of this kind instead of documents, in any shape that `engine.reader.shapes` knows."
    )
    columns: dict[str, str | None] = Field(
        default_factory=lambda: {},
        description="For `rows`: our names for the files' columns, each a column, a Jinja template over all of them (one that is "
        "a single `{{ expression }}` may give a list), or null to leave one of theirs out.",
    )
    split: Literal["train", "validation", "test"] | None = Field(
        None, description="For `rows`: only those of this split, by their `split` column or by the name of their file."
    )
    min_chars: int = Field(200, ge=1, description="Python: the shortest docstring or string literal to take.")
    max_bytes: int = Field(20_000_000, ge=1, description="The longest document, in bytes of UTF-8.")
    max_file_bytes: int = Field(
        MOST_BYTES,
        ge=1,
        description="What has to be held whole (PDF, HTML, JSON that is one object) may be so large, and so much a small file may "
        "unpack to; a larger one may unpack to 200 times its size. JSON lines, CSV, Parquet and arrays in JSON may be of any size.",
    )
    limit: int | None = Field(None, ge=1, description="Stop after this many documents.")
    license: Annotated[str | None, NotIdentity] = Field(
        None, description="Of these texts, e.g. `cc-by-4.0`. Stands in the card of every model made from them."
    )
    max_failed: Annotated[float, NotIdentity] = Field(
        1.0, ge=0, le=1, description="Share of rows that may fail before the stage does."
    )

    @field_validator("encoding")
    @classmethod
    def _known_codec(cls, name: str) -> str:
        from engine.reader.encodings import codec

        return codec(name)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.rows and self.text:
            raise ValueError("`text` makes documents; with `rows`, `columns` says where their parts are")
        if not self.rows and (self.columns or self.split):
            raise ValueError("`columns` and `split` are for `rows`; documents take `text`")
        return self

    def output(self, given: dict[str, list[str]]) -> str:
        return self.rows or self.gives

    def identity(self) -> dict[str, Any]:
        own = super().identity()
        if self.max_file_bytes == MOST_BYTES:  # as before there was a bound
            del own["max_file_bytes"]
        if self.rows is None:  # as before there were rows
            return {name: value for name, value in own.items() if name not in ("rows", "columns", "split")}
        from engine.reader.typed_rows import VERSION

        return {**own, "reader": VERSION}

    def sources(self, base: str) -> dict[str, str]:
        from engine.reader.ranges import may_be_cut
        from engine.reader.sources import find

        files = find(self.paths, base, self.exclude)
        # Order is part of the result, so it is part of the identity.
        told = {file.name: f"{i}:{file.digest()}" for i, file in enumerate(files)}
        if self.rows is None and any(may_be_cut(file, self.format) for file in files):
            told["(large files)"] = "cut into ranges"  # into other parts than when they were read whole
        return told
