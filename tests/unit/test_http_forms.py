"""The messages of older schema versions, for doors that read and write JSON."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = "libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService"


def test_a_program_that_knows_only_the_contract_has_the_messages_of_every_schema_version() -> None:
    """A router imports no module of a service: the contract's module brings all that its options name."""
    program = (
        "from libs.contract.descriptors import Contract\n"
        "from libs.http.forms import Forms\n"
        f"contract = Contract.load({PLACE!r})\n"
        "reply = Forms(contract).reply(contract.methods['GetSandbox'], 1)\n"
        "print(*sorted(field.name for field in reply.DESCRIPTOR.fields if field.number >= 30))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == ""
    assert done.stdout.split()[:3] == ["command", "cpu", "created_at"]
