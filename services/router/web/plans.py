"""The plan of a verb: its effects in the words of the command, and the request that makes them.

A plan is made twice: to be shown, and again when the operator agrees, from the same fields. The second request has the
generation of the first plan. If the migration has changed in between, the control API refuses it (OUTDATED).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from libs.errors import BatonError, InvalidField
from libs.ownership.model import Store
from libs.ownership.wire import STORE_NUMBERS
from libs.pb.baton.record.v1 import record_pb2
from services.router.core.phase import Phase
from services.router.web.view.gates import GateView

MAX_RATE = 1_000_000
MAX_INT32, MAX_INT64 = 2**31 - 1, 2**63 - 1

Form = Mapping[str, str]


class NotPossible(BatonError):
    """The change is not possible now."""

    code = "FAILED_PRECONDITION"
    reason = "NOT_POSSIBLE"


@dataclass(frozen=True, slots=True)
class Plan:
    title: str
    effects: Sequence[str]
    method: str
    """Method of the control API."""
    request: Any
    button: str = "Do it"
    confirm: str = ""
    """Text that the operator must type; "" for none."""
    warning: str = ""
    """Why it must be typed."""
    needs_reason: bool = False
    gates: Sequence[GateView] = ()
    """Gates that block the step. With them the request is not sent."""
    can_override: bool = False
    """An override with a reason passes the gates."""
    overridden: Sequence[str] = ()
    """Gates that an override passes."""

    @property
    def generation(self) -> int:
        """Generation of the setting that the plan is based on; 0 if it depends on none."""
        return int(getattr(self.request, "generation", 0))


def phase_of(form: Form) -> Phase:
    """Raises InvalidField."""
    name = form.get("to", "")
    if name not in Phase.__members__:
        raise InvalidField("to", name, f"one of {', '.join(Phase.__members__)}")
    return Phase[name]


def permille_of(form: Form, name: str = "percent") -> int:
    """Raises InvalidField."""
    text = form.get(name, "").strip().removesuffix("%").strip()
    try:
        permille = Decimal(text) * 10
    except InvalidOperation:
        permille = Decimal(-1)
    if not (permille.is_finite() and 0 <= permille <= 1000 and permille == permille.to_integral_value()):
        raise InvalidField(name, text, "0 to 100, in steps of 0.1")
    return int(permille)


def rate_of(form: Form) -> float:
    """Units per second; 0: as fast as live traffic allows. Raises InvalidField."""
    text = form.get("rate", "0").strip() or "0"
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if rate and not 1 <= rate <= MAX_RATE:
        raise InvalidField("rate", text, f"1 to {MAX_RATE} per second, or 0 for as fast as live traffic allows")
    return rate


def store_of(form: Form) -> record_pb2.Store.ValueType:
    """Raises InvalidField."""
    number: record_pb2.Store.ValueType = choice_of(form, "store", {one.value: STORE_NUMBERS[one] for one in Store})
    return number


def number_of(form: Form, name: str, most: int = MAX_INT64) -> int:
    """A whole number from 0 to `most`. Raises InvalidField."""
    text = form.get(name, "").strip()
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_INT64)) and int(text) <= most):
        raise InvalidField(name, text, f"a whole number, at most {most}")
    return int(text)


def choice_of(form: Form, name: str, choices: Mapping[str, Any]) -> Any:
    """The value of the choice. Raises InvalidField."""
    text = form.get(name, "")
    if text not in choices:
        raise InvalidField(name, text, f"one of {', '.join(choices)}")
    return choices[text]
