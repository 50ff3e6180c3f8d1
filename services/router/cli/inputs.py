"""Parsers for arguments. Each error names the values that are allowed."""

from __future__ import annotations

import time
from decimal import Decimal, InvalidOperation

from libs.errors import InvalidField
from services.router.cli.failure import CommandFailed, Exit
from services.router.core.phase import Phase
from services.router.core.retention import typed_start


def parse_phase(text: str) -> Phase:
    """Raises CommandFailed (usage)."""
    name = text.strip().upper().replace("-", "_")
    if name not in Phase.__members__:
        raise CommandFailed(f"phase: {text!r} does not exist: one of {', '.join(Phase.__members__)}", Exit.USAGE)
    return Phase[name]


def parse_percent(text: str) -> int:
    """Return the percentage in thousandths. Raises CommandFailed (usage)."""
    allowed = "0 to 100, in steps of 0.1"
    try:
        permille = Decimal(text.strip().removesuffix("%").strip()) * 10
    except InvalidOperation:
        raise CommandFailed(f"percentage: {text!r} is not a number: {allowed}", Exit.USAGE) from None
    if not permille.is_finite() or not 0 <= permille <= 1000:
        raise CommandFailed(f"percentage: {text} is out of range: {allowed}", Exit.USAGE)
    if permille != permille.to_integral_value():
        raise CommandFailed(f"percentage: {text} is too fine: {allowed}", Exit.USAGE)
    return int(permille)


def parse_store(text: str) -> str:
    """Return A or B. Raises CommandFailed (usage)."""
    names = {"a": "A", "simple_mcp": "A", "b": "B", "service_layer": "B"}
    store = names.get(text.strip().lower().replace("-", "_"))
    if store is None:
        raise CommandFailed(f"store: {text!r} does not exist: A (simple_mcp) or B (service_layer)", Exit.USAGE)
    return store


def parse_start(text: str) -> str:
    """Return the start in the log, a time with its date. Raises CommandFailed (usage)."""
    try:
        return typed_start(text, time.time())
    except InvalidField as error:
        raise CommandFailed(error.message, Exit.USAGE) from None


def parse_position(text: str) -> tuple[int, int]:
    """Return partition and offset. Raises CommandFailed (usage)."""
    partition, slash, offset = text.strip().partition("/")
    if not (slash and partition.isdecimal() and offset.isdecimal()):
        raise CommandFailed(f"{text!r} is not a position in the log: partition/offset, as 3/1200", Exit.USAGE)
    return int(partition), int(offset)


def parse_flag(text: str) -> bool | None:
    """Return true, false, or None for unset. Raises CommandFailed (usage)."""
    values = {"true": True, "false": False, "unset": None}
    word = text.strip().lower()
    if word not in values:
        raise CommandFailed(f"flag: {text!r} is not a value: one of {', '.join(values)}", Exit.USAGE)
    return values[word]
