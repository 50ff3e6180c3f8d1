"""A call's metadata is read once."""

from __future__ import annotations

from typing import Any

from libs.identity.principal import ANONYMOUS, Principal
from libs.rpc.errors import add_trailers
from libs.rpc.gate import Gate, ServerLimits
from libs.rpc.metadata import TOKEN

SECRET = b"0123456789abcdef"


class Counted:
    """A context that counts its readings."""

    def __init__(self) -> None:
        self.read_metadata = self.read_peer = 0
        self.trailers: Any = None

    def invocation_metadata(self) -> Any:
        self.read_metadata += 1
        return ((TOKEN, SECRET.decode()), ("x", "y"))

    def peer(self) -> str:
        self.read_peer += 1
        return "ipv4:10.0.0.1:4711"

    def time_remaining(self) -> float:
        return 1.0

    async def read(self) -> bytes:
        return b"request"

    def trailing_metadata(self) -> Any:
        return self.trailers

    def set_trailing_metadata(self, pairs: Any) -> None:
        self.trailers = pairs


class Reading:
    """An authenticator that reads the metadata too."""

    async def authenticate(self, credentials: Any) -> Principal:
        assert dict(credentials.invocation_metadata())["x"] == "y"
        return ANONYMOUS


async def test_a_call_decodes_its_metadata_once() -> None:
    async def handle(request: bytes, context: Any) -> bytes:
        add_trailers(context, context.invocation_metadata()[1:])
        add_trailers(context, (("peer", context.peer()),))
        return request

    context = Counted()
    gate = Gate(ServerLimits(), SECRET, Reading())
    assert await gate.answer(handle, "Get", None, context) == b"request"
    assert (context.read_metadata, context.read_peer) == (1, 1)
    assert context.trailers == (("x", "y"), ("peer", "ipv4:10.0.0.1:4711"))
