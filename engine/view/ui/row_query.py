"""The rows of an artifact by search, filter and order, without loading them: block after block, only the columns that are asked about.

What is found is remembered as places (numbers of rows, from 0 over all files), so that the next page goes on where this one ended;
the rows of a page are then read by their places, with the checksums of their pages compared.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from engine import expression
from engine.errors import Damaged, UserError, nearest
from engine.store.artifact import Artifact
from engine.store.parquet import open_parquet
from engine.store.schema import united

BLOCK = 250_000  # rows that are looked at in one go
DEEPEST = 10_000  # rows that are shown of an order: whoever looks further wants a filter
KEPT = 8  # searches that are remembered
IDENTITY = re.compile("[0-9a-f]{6,32}")


@dataclass(frozen=True)
class RowQuery:
    """What somebody wants to see.

    Attributes:
        search: stands in any text of the row, in upper or lower case.
        where: a Polars SQL expression over its columns; conversations are texts in it.
        equal: column -> value, as text.
        sort: a column; empty: as they are stored.
    """

    search: str = ""
    where: str = ""
    equal: tuple[tuple[str, str], ...] = ()
    sort: str = ""
    descending: bool = False

    @property
    def narrows(self) -> bool:
        return bool(self.search or self.where or self.equal)


@dataclass(frozen=True)
class Block:
    """Consecutive rows: `start` is the place of the first, `pieces` are file, first row in it, and how many."""

    start: int
    pieces: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class RowFiles:
    """The Parquet files of an artifact's rows, or of those that did not make it.

    Attributes:
        counts: rows a file, in order.
        fields: columns of all files, with their types.
    """

    artifact: Artifact
    names: tuple[str, ...]
    counts: tuple[int, ...]
    fields: dict[str, pa.DataType]

    @property
    def rows(self) -> int:
        return sum(self.counts)

    def blocks(self) -> list[Block]:
        """All rows, in blocks."""
        blocks: list[Block] = []
        pieces: list[tuple[str, int, int]] = []
        start = held = 0
        for name, count in zip(self.names, self.counts, strict=True):
            for at in range(0, count, BLOCK):
                taken = min(BLOCK, count - at)
                if held and held + taken > BLOCK:
                    blocks.append(Block(start, tuple(pieces)))
                    start, held, pieces = start + held, 0, []
                pieces.append((name, at, taken))
                held += taken
        return [*blocks, Block(start, tuple(pieces))] if held else blocks

    def frame(self, block: Block, columns: Sequence[str]) -> pl.LazyFrame:
        """Columns of a block, in which a conversation is a text, and `_place` of each row."""
        pieces = [
            pl.scan_parquet(self._path(name)).slice(start, rows).select(self._plain(name, columns))
            for name, start, rows in block.pieces
        ]
        return pl.concat(pieces, how="vertical_relaxed").with_row_index("_place", block.start)

    def _path(self, name: str) -> str:
        return str(self.artifact.place / name)

    def _plain(self, name: str, columns: Sequence[str]) -> list[pl.Expr]:
        held = set(_schema(self._path(name)).names)
        return [_as_text(c, self.fields[c]) if c in held else pl.lit(None).alias(c) for c in columns]

    def texts(self, search: str = "") -> list[str]:
        """Columns that a search looks at: those with ids only where it could be one."""
        ids = () if IDENTITY.fullmatch(search) else ("id", "parents")
        return [name for name, form in self.fields.items() if _is_text(form) and name not in ids]

    def known(self, column: str, what: str) -> str:
        """
        Raises:
            UserError: there is no such column.
        """
        if column not in self.fields:
            raise UserError(
                f"{what}: there is no column `{column}`.{nearest(column, self.fields)} Columns: {', '.join(self.fields)}."
            )
        return column

    def at(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """The rows at these places, in this order."""
        found: dict[int, dict[str, Any]] = {}
        start = 0
        for name, count in zip(self.names, self.counts, strict=True):
            mine = sorted(place - start for place in set(places) if start <= place < start + count)
            if mine:
                with _looked_into(self.artifact, name) as file:
                    rows = _take(file, mine).to_pylist()
                found |= {start + place: row for place, row in zip(mine, rows, strict=True)}
            start += count
        return [found[place] for place in places if place in found]


def row_files(artifact: Artifact, rejected: bool = False) -> RowFiles:
    """The files of an artifact's rows, whose footers are read once."""
    names = [n for n in (artifact.rejected_parts() if rejected else artifact.parts()) if n.endswith(".parquet")]
    if not artifact.store.local and names:
        assert artifact.path  # copies of a store elsewhere
    fields: dict[str, pa.DataType] = {}
    counts: list[int] = []
    for name in names:
        file = artifact.place / name
        try:
            counts.append(pq.read_metadata(file).num_rows)
            for column in _schema(str(file)):
                fields.setdefault(column.name, column.type)
        except (OSError, pa.ArrowInvalid) as error:
            raise artifact.damaged(name, f"it can't be read: {error}") from None
    return RowFiles(artifact, tuple(names), tuple(counts), fields)


@lru_cache(maxsize=20_000)
def _schema(path: str) -> pa.Schema:
    return pq.read_schema(path)


@contextlib.contextmanager
def _looked_into(artifact: Artifact, name: str) -> Generator[pq.ParquetFile]:
    """A file, of which some pages will be read. Each has a checksum; the digest of the whole file would take a look at all of it."""
    try:
        with Path(artifact.place / name).open("rb") as file:
            yield open_parquet(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise artifact.damaged(name, str(error)) from None


def _take(file: pq.ParquetFile, places: list[int]) -> pa.Table:
    """Rows of one file by their numbers, in order; no more is held than a batch of its rows."""
    tables: list[pa.Table] = []
    at = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        mine = [place - at for place in places if at <= place < at + count]
        begin = 0
        for batch in file.iter_batches(8192, row_groups=[group], use_threads=False) if mine else ():
            here = [place - begin for place in mine if begin <= place < begin + len(batch)]
            if here:
                tables.append(pa.Table.from_batches([batch]).take(here))
            begin += len(batch)
            if begin > mine[-1]:
                break
        at += count
    return pa.concat_tables(united(tables), promote_options="default")


def _is_said(form: pa.DataType) -> bool:
    """Whether a column holds messages."""
    return (
        pa.types.is_list(form)
        and pa.types.is_struct(form.value_type)
        and form.value_type.get_field_index("content") >= 0
    )


def _is_text(form: pa.DataType) -> bool:
    if pa.types.is_list(form) and not _is_said(form):
        form = form.value_type
    return pa.types.is_string(form) or pa.types.is_large_string(form) or _is_said(form)


def _as_text(name: str, form: pa.DataType) -> pl.Expr:
    """A column as an expression can use it: what was said as one text, a list of texts as one."""
    column = pl.col(name)
    if _is_said(form):
        column = column.list.eval(pl.element().struct.field("content").fill_null("")).list.join("\n")
    elif _is_text(form) and pa.types.is_list(form):
        column = column.list.join("\n", ignore_nulls=True)
    return column.alias(name)


@dataclass
class RowSearch:
    """What a query finds, as far as it was looked for. It goes on where it was.

    Attributes:
        places: of rows that were found, in order.
        seen: rows looked at.
    """

    files: RowFiles
    query: RowQuery
    places: list[int] = field(default_factory=lambda: [])
    seen: int = 0
    matches: int = 0
    _left: list[Block] = field(default_factory=lambda: [])
    _best: pl.DataFrame | None = None
    _looking: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        query, files = self.query, self.files
        for name, _ in query.equal:
            files.known(name, "a filter")
        if query.sort:
            files.known(query.sort, "the order")
        self._where = self._columns_of(query.where) if query.where else []
        searched = files.texts(query.search) if query.search else []
        sort = [query.sort] if query.sort else []
        asked: list[str] = [*searched, *self._where, *(name for name, _ in query.equal), *sort]
        self._columns: list[str] = list(dict.fromkeys(asked)) or list(files.fields)[:1]
        self._left = files.blocks()

    @property
    def done(self) -> bool:
        """Whether every row was looked at: then `matches` counts them all."""
        return not self._left

    def page(self, start: int, rows: int) -> list[int]:
        """Places of the rows from the `start`th one found on, at most so many."""
        if not self.query.narrows and not self.query.sort:
            self.matches = self.files.rows
            return list(range(start, min(start + rows, self.files.rows)))
        while self._left and (self.query.sort or len(self.places) < start + rows):
            self._look()
        return self.places[start : start + rows]

    def count(self) -> int:
        """How many rows are found in all."""
        if not self.query.narrows:
            return self.files.rows
        while self._left:
            self._look()
        return self.matches

    def _look(self) -> None:
        """Look through one more block; several may ask for it at the same time."""
        with self._looking:
            if self._left:
                self._look_through(self._left[0])

    def _look_through(self, block: Block) -> None:
        found = self._found(block)
        del self._left[0]
        self.seen += sum(rows for _, _, rows in block.pieces)
        self.matches += len(found)
        if not self.query.sort:
            self.places += found["_place"].to_list()
            return
        self._best = self._first_of(found.select("_place", self.query.sort))
        if not self._left:
            self.places = self._best["_place"].to_list()

    def _first_of(self, near: pl.DataFrame) -> pl.DataFrame:
        """The first rows in the order of the query, of those known so far and these."""
        name, down = self.query.sort, self.query.descending
        if self._best is not None:
            if len(self._best) == DEEPEST and (last := self._best[name][-1]) is not None:
                near = near.filter(pl.col(name) > last if down else pl.col(name) < last)
            near = pl.concat([self._best, near], how="vertical_relaxed")
        first = near.sort([name, "_place"], descending=[down, False], nulls_last=True).head(DEEPEST)
        # A text that is a view of the block that it was read in would keep all of the block.
        return cast(pl.DataFrame, pl.from_arrow(first.to_arrow()))

    def _found(self, block: Block) -> pl.DataFrame:
        lazy = self.files.frame(block, self._columns)
        for name, value in self.query.equal:
            lazy = lazy.filter(pl.col(name).cast(pl.String) == value)
        if self.query.search:
            pattern = "(?i)" + pl.escape_regex(self.query.search)
            lazy = lazy.filter(
                pl.any_horizontal(pl.col(name).str.contains(pattern) for name in self.files.texts(self.query.search))
            )
        kept = ["_place", *self._where, *([self.query.sort] if self.query.sort else [])]
        try:
            frame = lazy.select(list(dict.fromkeys(kept))).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise Damaged(
                f"{self.files.artifact.id}: rows {block.start:,} and on can't be read: {str(error).splitlines()[0]} "
                f"`flywheel verify {self.files.artifact.id}` tells what is damaged."
            ) from None
        if self.query.where:
            found = expression.column(self.query.where, frame.drop("_place"), "the filter")
            if found.dtype != pl.Boolean:
                raise UserError(
                    f"the filter: `{self.query.where}` is {found.dtype}, not true or false. For instance: {self._example()}."
                )
            frame = frame.filter(found)
        return frame

    def _columns_of(self, where: str) -> list[str]:
        """Which columns an expression names.

        Raises:
            UserError: it names one that is not there, or is no expression.
        """
        empty = pl.DataFrame(schema={**dict.fromkeys(self.files.fields, pl.Null), **self._types()})
        expression.column(where, empty, "the filter")
        return [name for name in pl.sql_expr(where).meta.root_names() if name in self.files.fields]

    def _types(self) -> dict[str, Any]:
        empty = pa.schema(list(self.files.fields.items())).empty_table()
        frame = cast(pl.DataFrame, pl.from_arrow(empty))
        return dict(frame.select(_as_text(name, form) for name, form in self.files.fields.items()).schema)

    def _example(self) -> str:
        name = next(iter(self.files.texts()), "id")
        return f"`{name} LIKE '%word%'`"


@dataclass
class Searches:
    """The last searches and files that were looked through, so that the next page is not a new search."""

    _files: OrderedDict[Any, RowFiles] = field(default_factory=lambda: OrderedDict())
    _searches: OrderedDict[Any, RowSearch] = field(default_factory=lambda: OrderedDict())
    _choosing: threading.RLock = field(default_factory=threading.RLock)

    def files(self, artifact: Artifact, rejected: bool = False) -> RowFiles:
        key = (artifact.id, artifact.manifest.get("digest"), rejected)
        with self._choosing:
            return _kept(self._files, key, lambda: row_files(artifact, rejected))

    def search(self, artifact: Artifact, query: RowQuery, rejected: bool = False) -> RowSearch:
        """The search for a query, which goes on where it was when it is asked again.

        Raises:
            UserError: the query is wrong.
        """
        key = (artifact.id, artifact.manifest.get("digest"), rejected, query)
        with self._choosing:
            return _kept(self._searches, key, lambda: RowSearch(self.files(artifact, rejected), query))


T = TypeVar("T")


def _kept(shelf: OrderedDict[Any, T], key: Any, make: Callable[[], T]) -> T:
    """What is known under a key. Of what is not finished (it has no digest) nothing is kept."""
    if key[1] is None:
        return make()
    if key not in shelf:
        shelf[key] = make()
        while len(shelf) > KEPT:
            shelf.popitem(last=False)
    shelf.move_to_end(key)
    return shelf[key]
