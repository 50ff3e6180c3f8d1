"""The two-person rule. Pure.

While it is on, a step without a way back takes two people. The first one's call is recorded with its exact request and
with a hash of the setting that it was made on. A second person, of another subject, approves it, which takes it out of
the record and runs it. So it runs at most once. It does not run after ten minutes, nor on another setting. Its caller
or an admin may withdraw it.

The rule and the recorded calls are in the setting, so they hold at every router, whatever the router's own settings.
Which calls need a second person is in `services.router.api.approvals`: rollbacks, holds and flags never do.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from libs.errors import BatonError
from services.router.core.pending import EXPIRES_SECONDS, MAX_PENDING, PendingCall
from services.router.core.phase import IllegalMove, Outdated, Setting, noted


class CallNotFound(BatonError):
    """No such call waits for approval."""

    code = "NOT_FOUND"
    reason = "CALL_NOT_FOUND"


class OwnCall(BatonError):
    """You made this call yourself: another admin must approve it."""

    code = "PERMISSION_DENIED"
    reason = "OWN_CALL"


class NewerCall(BatonError):
    """The call has a part that this router does not support: approve it at a router of the release that made it."""

    code = "FAILED_PRECONDITION"
    reason = "NEWER_CALL"


class TooManyCalls(BatonError):
    """Too many calls wait for approval."""

    code = "RESOURCE_EXHAUSTED"
    reason = "TOO_MANY_CALLS"


def basis(setting: Setting) -> str:
    """Hash of everything in the setting by which a person decides. Journal entries about other things keep it."""
    return hashlib.sha256(repr(replace(setting, generation=0, pending=())).encode()).hexdigest()


def live(setting: Setting, now: float) -> tuple[PendingCall, ...]:
    """The calls that have not expired, oldest first."""
    return tuple(call for call in setting.pending if call.is_live(now))


def same(setting: Setting, call: PendingCall) -> PendingCall | None:
    """The call if the same person has made it on the same setting already."""
    for one in live(setting, call.seconds):
        if replace(one, id=call.id, seconds=call.seconds) == call:
            return one
    return None


def record(setting: Setting, call: PendingCall) -> Setting:
    """Record a call. Raises TooManyCalls."""
    pending = live(setting, call.seconds)
    if len(pending) >= MAX_PENDING:
        raise TooManyCalls(f"{MAX_PENDING} calls wait for approval: approve or withdraw some of them")
    return replace(noted(setting), pending=(*pending, call))


def approve(setting: Setting, call_id: str, subject: str, now: float) -> tuple[Setting, PendingCall]:
    """Take a call out of the record, to run it. Raises CallNotFound, OwnCall, Outdated."""
    call = waiting(setting, call_id, now)
    if call.subject == subject:
        raise OwnCall(f"you made the call {call_id} yourself: another admin must approve it")
    if call.basis != basis(setting):
        raise Outdated(f"the setting has changed since the call {call_id} was made: nothing was done; call again")
    return _without(setting, call, now), call


def withdraw(setting: Setting, call_id: str, now: float) -> tuple[Setting, PendingCall]:
    """Take a call out of the record without running it. Raises CallNotFound."""
    call = waiting(setting, call_id, now)
    return _without(setting, call, now), call


def waiting(setting: Setting, call_id: str, now: float) -> PendingCall:
    """The call with this id. Raises CallNotFound."""
    found = [call for call in live(setting, now) if call.id == call_id]
    if not found:
        minutes = EXPIRES_SECONDS / 60
        raise CallNotFound(f"no call {call_id!r} waits for approval: calls expire after {minutes:.0f} minutes")
    (call,) = found
    return call


def _without(setting: Setting, call: PendingCall, now: float) -> Setting:
    return replace(noted(setting), pending=tuple(one for one in live(setting, now) if one is not call))


def set_two_person(setting: Setting, *, on: bool) -> Setting:
    """Raises IllegalMove."""
    if setting.two_person is on:
        raise IllegalMove(f"the two-person rule is {'on' if on else 'off'} already")
    return replace(noted(setting), two_person=on)
