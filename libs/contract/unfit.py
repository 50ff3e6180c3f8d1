"""The error of a contract that cannot be served."""

from __future__ import annotations

from libs.errors import BatonError


class UnfitContract(BatonError):
    """The contract lacks facts that a router needs."""
