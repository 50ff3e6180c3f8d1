"""Whether a backend serves."""

from __future__ import annotations

from libs.errors import StoreNotReady


class Serving:
    """Starts as not serving. `reason` says why not, in words; "" when it serves."""

    def __init__(self) -> None:
        self.reason = "starting"

    def __repr__(self) -> str:
        return f"<Serving {self.reason or 'yes'}>"

    @property
    def serving(self) -> bool:
        return not self.reason

    def serve(self) -> None:
        self.reason = ""

    def stop(self, reason: str) -> None:
        self.reason = reason

    def check(self) -> None:
        """Raises StoreNotReady."""
        if self.reason:
            raise StoreNotReady(f"the store does not serve: {self.reason}")
