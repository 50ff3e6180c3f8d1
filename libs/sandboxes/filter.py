"""Filters of lists and watches.

    filter = [ term { "AND" term } ]
    term   = "state" "=" STATE | "account" "=" STRING | "labels." KEY "=" STRING
    STATE  = PENDING | RUNNING | STOPPED | FAILED
    STRING = '"' value '"'

Spaces may surround "=" and the whole text; AND is in capitals with spaces around it. Each field occurs at most once.
Values need no escapes, since accounts and labels have no quotes. An empty filter matches every sandbox.
"""

from __future__ import annotations

import re

from libs.contract.pages import Filter
from libs.errors import InvalidField
from libs.sandboxes.transitions import NUMBERS
from libs.sandboxes.validation import check_account, check_label

FIELD = "filter"
MAX_FILTER_CHARACTERS = 8192

_LABELS = "labels."
_STATES = ", ".join(NUMBERS)
_TERMS = f'a term: state = {_STATES.replace(", ", "|")}, account = "..." or labels.KEY = "..."'
_LEFT = re.compile(r" *(?P<left>state|account|labels\.[a-z0-9._/-]+) *= *")
_WORD = re.compile(r"[A-Z_]+")
_STRING = re.compile(r'"([^"\\]*)"')
_AND = re.compile(r" +AND +")
_END = re.compile(r" *\Z")


def parse_filter(text: str, *, show_deleted: bool = False) -> Filter:
    """Parse a filter. Raises InvalidField with the position of the error, counted in characters from 1."""
    if len(text) > MAX_FILTER_CHARACTERS:
        raise InvalidField(FIELD, f"{len(text)} characters", f"at most {MAX_FILTER_CHARACTERS} characters")
    terms: dict[str, str] = {}
    position = 0
    more = not _END.match(text)
    while more:
        left, value, position = _term(text, position, terms)
        terms[left] = value
        more = not _END.match(text, position)
        if more:
            joint = _AND.match(text, position)
            if joint is None:
                raise _refused(text, position, "AND and another term, or the end")
            position = joint.end()
    return Filter(
        equals=tuple((left, value) for left, value in terms.items() if not left.startswith(_LABELS)),
        labels=tuple((left[len(_LABELS) :], value) for left, value in terms.items() if left.startswith(_LABELS)),
        show_deleted=show_deleted,
    )


def format_filter(query: Filter) -> str:
    """The text that `parse_filter` turns into this filter."""
    terms = [f"{column} = {value}" if column == "state" else f'{column} = "{value}"' for column, value in query.equals]
    terms += [f'{_LABELS}{key} = "{value}"' for key, value in query.labels]
    return " AND ".join(terms)


def _term(text: str, position: int, seen: dict[str, str]) -> tuple[str, str, int]:
    match = _LEFT.match(text, position)
    if match is None:
        raise _refused(text, position, _TERMS)
    left = match["left"]
    if left in seen:
        raise _refused(text, match.start("left"), f"another field: {left} is there already")
    if left == "state":
        value = _WORD.match(text, match.end())
        if value is None or value[0] not in NUMBERS:
            raise _refused(text, match.end(), f"one of {_STATES}")
        return left, value[0], value.end()
    value = _STRING.match(text, match.end())
    if value is None:
        raise _refused(text, match.end(), "a value in double quotes, without quotes and backslashes in it")
    if left == "account":
        check_account(value[1], f"{FIELD} account")
    else:
        check_label(left[len(_LABELS) :], value[1], f"{FIELD} labels")
    return left, value[1], value.end()


def _refused(text: str, position: int, allowed: str) -> InvalidField:
    return InvalidField(FIELD, text, f"at character {position + 1} it must have {allowed}")
