"""Errors of the sandbox contract. `libs.errors.InvalidField` is another one."""

from __future__ import annotations

from libs.errors import BatonError


class SandboxNotFound(BatonError):
    """The sandbox does not exist."""

    code = "NOT_FOUND"
    reason = "SANDBOX_NOT_FOUND"

    def __init__(self, name: str, expected: str = "the name of a sandbox that exists and is not deleted") -> None:
        super().__init__(f"name: there is no sandbox {name!r}: give {expected}", field="name", name=name)


class SandboxAlreadyExists(BatonError):
    """The sandbox exists and is not deleted."""

    code = "ALREADY_EXISTS"
    reason = "SANDBOX_ALREADY_EXISTS"

    def __init__(self, name: str, expected: str) -> None:
        super().__init__(f"name: sandbox {name!r} exists and is not deleted: {expected}", field="name", name=name)


class EtagMismatch(BatonError):
    """The sandbox was written since this etag was read; nothing was changed."""

    code = "ABORTED"
    reason = "ETAG_MISMATCH"

    def __init__(self, etag: str, current: str) -> None:
        state = f"the sandbox has {current} now" if current else "the sandbox does not exist"
        super().__init__(
            f"etag: {etag} does not name the last write, {state}: read it again, or leave the etag out",
            field="etag",
            etag=etag,
            current=current,
        )


class LeaseHeld(BatonError):
    """Another client holds the sandbox; nothing was changed: try again later."""

    code = "FAILED_PRECONDITION"
    reason = "LEASE_HELD"

    def __init__(self, name: str, holder: str, retry_seconds: float) -> None:
        super().__init__(
            f"lease: {holder!r} holds the sandbox: wait until the lease is given back or has ended",
            field="lease",
            name=name,
            holder=holder,
        )
        self.retry_seconds = retry_seconds


class LeaseLost(BatonError):
    """The lease of this token has ended, or another client holds the sandbox; nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "LEASE_LOST"

    def __init__(self, token: str, current: str) -> None:
        state = "no client holds the sandbox" if not current else f"the last lease is {current}"
        super().__init__(
            f"lease: {token} does not hold the sandbox any more, {state}: stop, then acquire a lease again",
            field="lease",
            token=token,
            current=current,
        )


class IllegalStateTransition(BatonError):
    """The sandbox cannot change from this state to that one; nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "ILLEGAL_STATE_TRANSITION"

    def __init__(self, before: str, after: str, allowed: str) -> None:
        super().__init__(
            f"sandbox.state: a sandbox cannot change from {before} to {after}: from {before} it goes to {allowed}",
            field="sandbox.state",
            before=before,
            after=after,
        )
