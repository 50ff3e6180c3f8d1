"""What people type, checked: each refusal names what is allowed."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from services.router.cli.options import CommandFailed, Exit
from services.router.core.phase import Phase


def parse_phase(text: str) -> Phase:
    """Raises CommandFailed (usage)."""
    name = text.strip().upper().replace("-", "_")
    if name not in Phase.__members__:
        raise CommandFailed(f"phase: {text!r} does not exist: one of {', '.join(Phase.__members__)}", Exit.USAGE)
    return Phase[name]


def parse_percent(text: str) -> int:
    """The percentage in thousandths. Raises CommandFailed (usage)."""
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


def parse_flag(text: str) -> bool | None:
    """None: unset. Raises CommandFailed (usage)."""
    values = {"true": True, "false": False, "unset": None}
    word = text.strip().lower()
    if word not in values:
        raise CommandFailed(f"flag: {text!r} is not a value: one of {', '.join(values)}", Exit.USAGE)
    return values[word]
