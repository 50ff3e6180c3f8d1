"""What stores keep in columns of their own, so that they can filter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.sandboxes.transitions import UNSPECIFIED, state_name
from libs.store.port import Filter


@dataclass(frozen=True, slots=True)
class Projection:
    """The part of a sandbox that a list can ask for. The payload decides; this is made from it."""

    state: str = state_name(UNSPECIFIED)
    account: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def matches(self, query: Filter) -> bool:
        """Whether a list with this filter shows it; `show_deleted` is not looked at."""
        columns = {"state": self.state, "account": self.account}
        return all(columns[column] == value for column, value in query.equals) and all(
            self.labels.get(key) == value for key, value in query.labels
        )


def project(payload: bytes) -> Projection:
    """Of a stored payload; of a stub's empty one too. Raises protobuf's DecodeError for bytes that are no Sandbox."""
    sandbox = Sandbox.FromString(payload)
    return Projection(state_name(sandbox.state), sandbox.account, dict(sandbox.labels))
