# Runs inside Argilla's private environment, whose packages this project's type checker cannot see.
# pyright: basic, reportMissingImports=false
"""Argilla's filters and sorts as SQL over its own tables, for SQLite and PostgreSQL.

Where the two differ (JSON), the difference is in `json_values`. A bound or a status that cannot be is refused in words
(HTTP 422), never left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import Any
from uuid import UUID

from argilla_server.enums import RecordStatus, ResponseStatus, ResponseStatusFilter, SortOrder, SuggestionType
from argilla_server.errors.future import UnprocessableEntityError
from argilla_server.models import Dataset, Question, Record, Response, Suggestion
from argilla_server.search_engine.base import (
    AndFilter,
    Filter,
    MetadataFilterScope,
    Order,
    RangeFilter,
    RecordFilterScope,
    ResponseFilterScope,
    SuggestionFilterScope,
    TermsFilter,
)
from argilla_server.settings import settings
from sqlalchemy import (
    Float,
    String,
    Text,
    and_,
    case,
    cast,
    exists,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import JSONB, JSONPATH

# --- JSON columns ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class JsonValues:
    """The values at a path of a JSON column, one row each (a list gives its items, a missing path none).

    `numeral` is a number that is written as a text, too: a property may have been declared one after its values were there.
    """

    table: Any
    text: Any
    number: Any
    numeral: Any


_NUMERAL = r"^[-+]?[0-9]{1,30}(\.[0-9]{1,30})?$"


def _sqlite() -> bool:
    return settings.database_is_sqlite


def json_text(column: Any) -> Any:
    return type_coerce(column, Text) if _sqlite() else cast(column, Text)


def json_values(column: Any, *path: str) -> JsonValues:
    if _sqlite():
        if path and set(path[0]) & {'"', "\\"}:  # SQLite's paths know no escapes: look the key up instead
            entry = func.json_each(column).table_valued("key", "value", "type")
            whole = case((entry.c.type.in_(["array", "object"]), entry.c.value), else_=func.json_array(entry.c.value))
            column = select(whole).where(entry.c.key == path[0]).scalar_subquery()
            path = path[1:]
        # It compares keys as they are written, and they are written in ASCII.
        steps = "".join(f".{json.dumps(step)}" for step in path)
        table = func.json_each(column, f"${steps}").table_valued("value", "type")
        text = cast(table.c.value, String)
        number = case((table.c.type.in_(["integer", "real"]), cast(table.c.value, Float)))
        written = case((and_(table.c.type == "text", text.regexp_match(_NUMERAL)), cast(text, Float)))
        return JsonValues(table, text, number, func.coalesce(number, written))
    steps = "".join(f".{json.dumps(step)}" for step in path)
    items = func.jsonb_path_query(cast(column, JSONB), cast(literal(f"${steps}[*]"), JSONPATH))
    table = items.table_valued("value").render_derived()
    text = table.c.value.op("#>>")(literal_column("'{}'"))
    kind = func.jsonb_typeof(table.c.value)
    number = case((kind == "number", cast(text, Float)))
    written = case((and_(kind == "string", text.regexp_match(_NUMERAL)), cast(text, Float)))
    return JsonValues(table, text, number, func.coalesce(number, written))


def _any_value(values: JsonValues, filter: TermsFilter | RangeFilter) -> Any:
    return exists(select(literal(1)).select_from(values.table).where(_value_condition(values, filter)))


def _value_condition(values: JsonValues, filter: TermsFilter | RangeFilter) -> Any:
    if isinstance(filter, TermsFilter):
        numbers = [number for number in map(_number, filter.values) if number is not None]
        return or_(values.text.in_(filter.values), values.number.in_(numbers) if numbers else false())
    return _between(values.numeral, *(_bound(bound, _number, "a number") for bound in (filter.ge, filter.le)))


def _bound(value: Any, parse: Callable[[Any], Any], expected: str) -> Any:
    """A bound of a range; None if none was given.

    Raises:
        UnprocessableEntityError: it was given and is not what was expected. Left out, it would let everything through.
    """
    parsed = parse(value)
    if value is not None and parsed is None:
        raise UnprocessableEntityError(f"A range is bounded by {value!r}; expected {expected}.")
    return parsed


def _between(column: Any, ge: Any, le: Any) -> Any:
    return and_(true(), *([column >= ge] if ge is not None else []), *([column <= le] if le is not None else []))


def _number(value: Any) -> float | None:
    try:
        number = None if value is None else float(value)
    except ValueError:
        return None
    return number if number is None or isfinite(number) else None


# --- filters and sorts ----------------------------------------------------------------------------


def conditions(filter: Filter | None, dataset: Dataset) -> list[Any]:
    if filter is None:
        return []
    if isinstance(filter, AndFilter):
        return [condition for inner in filter.filters for condition in conditions(inner, dataset)]
    scope = filter.scope
    if isinstance(scope, MetadataFilterScope):
        return [_any_value(json_values(Record.metadata_, scope.metadata_property), filter)]
    if isinstance(scope, ResponseFilterScope):
        return [_response_condition(filter, scope)]
    if isinstance(scope, SuggestionFilterScope):
        return [_suggestion_condition(filter, scope, dataset)]
    if isinstance(scope, RecordFilterScope):
        return [_record_condition(filter, scope)]
    raise ValueError(f"Cannot process request for filter {filter}")


def _response_condition(filter: TermsFilter | RangeFilter, scope: ResponseFilterScope) -> Any:
    mine = [Response.record_id == Record.id]
    if scope.user is not None:
        mine.append(Response.user_id == scope.user.id)
    if scope.question:
        values = json_values(Response.values, scope.question, "value")
        return exists().where(*mine, _any_value(values, filter))
    if scope.property != "status" or not isinstance(filter, TermsFilter):
        raise ValueError(f"Cannot process request for search scope {scope}")
    if not filter.values:
        return true()
    if unknown := [value for value in filter.values if value not in ResponseStatusFilter.__members__]:
        known = ", ".join(ResponseStatusFilter.__members__)
        raise UnprocessableEntityError(f"A response has no status {unknown[0]!r}; expected {known}.")
    wanted = {ResponseStatusFilter(value) for value in filter.values}
    statuses = [ResponseStatus(status.value) for status in wanted if status is not ResponseStatusFilter.pending]
    options = [exists().where(*mine, Response.status.in_(statuses))] if statuses else []
    if ResponseStatusFilter.pending in wanted:
        options.append(~exists().where(*mine))
    return or_(false(), *options)


def _suggestion_condition(filter: TermsFilter | RangeFilter, scope: SuggestionFilterScope, dataset: Dataset) -> Any:
    mine = _suggestion_of(scope.question, dataset)
    if scope.property == "value":
        return exists().where(*mine, _any_value(json_values(Suggestion.value), filter))
    if scope.property == "score":
        return exists().where(*mine, _any_value(json_values(Suggestion.score), filter))
    if not isinstance(filter, TermsFilter):
        return false()
    if scope.property == "agent":
        return exists().where(*mine, Suggestion.agent.in_(filter.values))
    if scope.property == "type":
        known = [SuggestionType(value) for value in filter.values if value in SuggestionType.__members__]
        return exists().where(*mine, Suggestion.type.in_(known))
    raise ValueError(f"Cannot process request for search scope {scope}")


def _suggestion_of(question: str, dataset: Dataset) -> list[Any]:
    asked = select(Question.id).where(Question.dataset_id == dataset.id, Question.name == question)
    return [Suggestion.record_id == Record.id, Suggestion.question_id == asked.scalar_subquery()]


def _record_condition(filter: TermsFilter | RangeFilter, scope: RecordFilterScope) -> Any:
    column, parse, expected = _RECORD_COLUMNS[str(scope.property)]
    if isinstance(filter, TermsFilter):
        return column.in_([value for value in map(parse, filter.values) if value is not None])
    return _between(column, *(_bound(bound, parse, expected) for bound in (filter.ge, filter.le)))


def _uuid(value: Any) -> UUID | None:
    try:
        return None if value is None else UUID(str(value))
    except ValueError:
        return None


def _time(value: Any) -> datetime | None:
    if value is None:
        return None
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time  # stored as naive UTC


def _status(value: Any) -> RecordStatus | None:
    return RecordStatus(value) if value in RecordStatus.__members__ else None


_TIME = "a time as 2026-01-31T12:00:00"
_RECORD_COLUMNS: dict[str, tuple[Any, Callable[[Any], Any], str]] = {
    "id": (Record.id, _uuid, "a record's id"),
    "external_id": (Record.external_id, lambda value: None if value is None else str(value), "a text"),
    "inserted_at": (Record.inserted_at, _time, _TIME),
    "updated_at": (Record.updated_at, _time, _TIME),
    "status": (Record.status, _status, "pending or completed"),
}


def ordering(order: Order, dataset: Dataset) -> Sequence[Any]:
    """Sort columns of one order; records without a value come last either way, as in Elasticsearch."""
    scope = order.scope
    if isinstance(scope, RecordFilterScope):
        columns = [_RECORD_COLUMNS[str(scope.property)][0]]
    elif isinstance(scope, MetadataFilterScope):
        columns = _extremes(json_values(Record.metadata_, scope.metadata_property), order, [])
    elif isinstance(scope, SuggestionFilterScope):
        mine = _suggestion_of(scope.question, dataset)
        if scope.property in ("value", "score"):
            column = Suggestion.value if scope.property == "value" else Suggestion.score
            columns = _extremes(json_values(column), order, [(Suggestion, mine)])
        else:
            column = Suggestion.agent if scope.property == "agent" else cast(Suggestion.type, String)
            columns = [select(func.min(column)).where(*mine).correlate(Record).scalar_subquery()]
    elif isinstance(scope, ResponseFilterScope):
        mine = [Response.record_id == Record.id]
        if scope.user is not None:
            mine.append(Response.user_id == scope.user.id)
        if scope.question:
            values = json_values(Response.values, scope.question, "value")
            columns = _extremes(values, order, [(Response, mine)], number=func.avg)
        else:
            columns = [select(func.min(cast(Response.status, String))).where(*mine).correlate(Record).scalar_subquery()]
    else:
        raise ValueError(f"Cannot process request for search scope {scope}")
    direction = SortOrder(order.order)
    return [(column.asc() if direction is SortOrder.asc else column.desc()).nulls_last() for column in columns]


def _extremes(values: JsonValues, order: Order, owners: list[tuple[Any, list[Any]]], number: Any = None) -> list:
    """The least value (ascending) or the greatest (descending) of a record: numbers first, then text."""
    pick = func.min if order.order == SortOrder.asc else func.max
    columns = []
    for value, by in ((values.number, number or pick), (values.text, pick)):
        subquery = select(by(value))
        if owners:
            (owner, mine), *_ = owners
            subquery = subquery.select_from(owner).join(values.table, true()).where(*mine)
        else:
            subquery = subquery.select_from(values.table)
        columns.append(subquery.correlate(Record).scalar_subquery())
    return columns
