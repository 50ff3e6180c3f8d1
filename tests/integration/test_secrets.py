"""A system with known secrets shows them to the callers of the contract, and nowhere else.

Records get secrets in environments and annotations; calls are refused, stores differ, an event is parked, jobs report
and an operator looks at all of it. Then every log line, error and output is searched for the secrets.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest

from libs.eventlog.cloudevents import HeaderWriter
from libs.eventlog.port import Event
from libs.ownership.model import Record, Row, Store, Version
from libs.ownership.wire import record_to_pb
from libs.pb.sandbox.v1 import sandbox_pb2
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from libs.telemetry.logs import JsonLines, TextLines
from services.router.cli.failure import Exit
from services.router.flows.feed.reveal import REVEALED
from tests.commands import answer, baton
from tests.http_client import ask
from tests.integration.test_write_ledger import SANDBOXES
from tests.system.control import ControlledSystem, running_controlled_system
from tests.system.http import http_door
from tests.waiting import eventually

SECRETS = ("hunter2-in-env", "hunter2-in-annotation", "hunter2-refused", "hunter2-differs", "hunter2-parked")
IN_ENV, IN_ANNOTATION, REFUSED, DIFFERS, PARKED = SECRETS
NAME = "sandboxes/one"
TOKEN = b"hunter2-control-token"


def a_sandbox(name: str, env: str, note: str = IN_ANNOTATION) -> sandbox_pb2.Sandbox:
    spec = sandbox_pb2.SandboxSpec(image="image:1", env={"KEY": env})
    return sandbox_pb2.Sandbox(name=name, account="acme", spec=spec, annotations={"note": note})


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    async with running_controlled_system(kit=replace(SANDBOXES, schema_version=2), mover=False) as running:
        yield running


async def refused(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return f"{caught.value.details()} {caught.value.trailing_metadata()} {caught.value!r}"


async def test_secrets_are_in_no_log_error_report_and_output(
    controlled: ControlledSystem, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("asyncio").setLevel(logging.INFO)
    client: Any = SandboxServiceStub(controlled.system.client.grpc)
    sandbox = a_sandbox("", IN_ENV)
    sandbox.ClearField("name")
    made = await client.CreateSandbox(pb.CreateSandboxRequest(sandbox_id="one", sandbox=sandbox))
    assert made.spec.env["KEY"] == IN_ENV and made.annotations["note"] == IN_ANNOTATION, "its caller gets all of it"
    found = [*await _refusals(controlled, client)]
    await _differ_and_park(controlled)
    found += await _looked_at(controlled)
    logs = [form.format(record) for record in caplog.records for form in (TextLines(), JsonLines())]
    assert logs, "there are lines to search"
    shown = [text for text in (*found, *logs) if any(secret in text for secret in SECRETS)]
    assert not shown, shown[0][:2000]


async def _refusals(controlled: ControlledSystem, client: Any) -> list[str]:
    """Errors of writes with secrets, over gRPC and HTTP."""
    bad, noted = a_sandbox(NAME, REFUSED + "\0"), a_sandbox(NAME, "x", REFUSED + "\0")
    found = [
        await refused(client.CreateSandbox(pb.CreateSandboxRequest(sandbox_id="two", sandbox=bad))),
        await refused(client.UpdateSandbox(pb.UpdateSandboxRequest(sandbox=bad, allow_missing=True))),
        await refused(client.UpdateSandbox(pb.UpdateSandboxRequest(sandbox=noted, allow_missing=True))),
    ]
    system = controlled.system
    async with http_door(system.contract, system.service, system.router) as door:
        kind = {"content-type": "application/json"}
        for env in (REFUSED, [REFUSED], {"A": {"B": REFUSED}}, {"A": REFUSED + "\0"}, {"A": REFUSED + "\ud800"}):
            body = json.dumps({"account": "acme", "spec": {"image": "a", "env": env}}).encode()
            refusal = await ask(door.address, "POST", "/v1/sandboxes?sandboxId=two", body, kind)
            assert refusal.status == 400
            call = {"name": "create_sandbox", "arguments": {"sandboxId": "two", "sandbox": json.loads(body)}}
            message = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}).encode()
            over_mcp = await ask(
                door.address, "POST", "/mcp", message, {**kind, "accept": "application/json, text/event-stream"}
            )
            found += [refusal.body.decode(), over_mcp.body.decode()]
    assert not [text for text in found if "is not valid" not in text and "Parse error" not in text]
    return found


async def _differ_and_park(controlled: ControlledSystem) -> None:
    """Give B another content of a record of the same version, and the log an event that cannot be applied."""
    await eventually(lambda: NAME in controlled.system.ports(Store.B)._state.rows, what="B has the record")
    rows = controlled.system.ports(Store.B)._state.rows
    rows[NAME] = replace(rows[NAME], payload=a_sandbox(NAME, DIFFERS, DIFFERS).SerializeToString())
    payload = a_sandbox("sandboxes/other", PARKED, PARKED).SerializeToString()
    row = Row("sandboxes/parked", Version(0, 1), Store.A, Version(0, 1), True, payload, 2)
    value = record_to_pb(Record(row, (), Store.A, 0.0)).SerializeToString()
    headers = HeaderWriter("A", "baton.record.v1").write(row.key, (0, 1), 0.0)
    await controlled.system.log.append([Event(row.key, value, headers), Event("sandboxes/bad", PARKED.encode())])


async def _looked_at(controlled: ControlledSystem) -> list[str]:
    """Outputs of an operator's commands."""

    async def parked() -> bool:
        return len((await answer(controlled, "events", "parked"))["parked"]) >= 2

    await eventually(parked, 60.0, "the events are parked")
    commands = (
        ("validate", "--wait", "--yes"),
        ("reconcile", "--deep", "--no-repair", "--yes"),
        ("events", "parked"),
        ("events", "retry", "--all", "--yes"),
        ("events", "tail"),
        ("events", "show", NAME),
        ("events", "show", "sandboxes/parked"),
        ("records", "show", NAME),
        ("records", "show", "sandboxes/parked"),
        ("conflicts",),
        ("explain", NAME),
        ("status",),
        ("doctor",),
        ("jobs",),
        ("journal",),
        ("ledger",),
        ("shadow", "show"),
    )
    found = []
    for command in commands:
        for form in ("json", "table"):
            result = await baton(controlled, *command, "-o", form)
            assert result.exit_code is not Exit.USAGE, (command, result.stderr)
            assert result.stdout or result.stderr, command
            found.append(f"{command} {result.stdout} {result.stderr} {result.exception}")
    assert sum("***" in text for text in found) >= 4, "contents are shown, without secrets"
    return found


async def test_secrets_are_shown_to_an_operator_who_gives_a_reason_which_is_journaled(
    controlled: ControlledSystem,
) -> None:
    client: Any = SandboxServiceStub(controlled.system.client.grpc)
    sandbox = a_sandbox("", IN_ENV)
    sandbox.ClearField("name")
    await client.CreateSandbox(pb.CreateSandboxRequest(sandbox_id="one", sandbox=sandbox))
    await eventually(lambda: NAME in controlled.system.ports(Store.B)._state.rows, what="B has the record")
    for command in (("events", "show", NAME), ("records", "show", NAME), ("conflicts",)):
        hidden = await baton(controlled, *command, "-o", "json")
        assert hidden.exit_code == Exit.OK and IN_ENV not in hidden.stdout
        unasked = await baton(controlled, *command, "--reveal", "-o", "json")
        assert unasked.exit_code == Exit.USAGE and "--reason" in unasked.stderr and IN_ENV not in unasked.stdout
        revealed = await baton(controlled, *command, "--reveal", "--reason", "a leak", "--actor", "ann", "-o", "json")
        assert revealed.exit_code == Exit.OK
        assert IN_ENV in revealed.stdout or command == ("conflicts",)
    journaled = [(one.actor, one.reason) for one in await controlled.store.journal(10) if one.action == REVEALED]
    assert journaled == [("ann", f"a leak ({shown})") for shown in ("conflicts", NAME, f"events of {NAME}")]


async def test_a_redacted_record_is_not_taken_for_a_whole_one(controlled: ControlledSystem, tmp_path: Any) -> None:
    row = Row("sandboxes/bad", Version(0, 1), Store.A, Version(0, 1), True, b"\xff", 2)
    for store in Store:
        await controlled.system.ports(store).transfers.apply([Record(row, (), Store.A, 0.0)])
    file = tmp_path / "record.json"
    file.write_text(json.dumps({"name": row.key, "account": "acme", "spec": {"image": "a", "env": {"KEY": "***"}}}))
    result = await baton(controlled, "records", "replace", row.key, "--from", str(file), "--reason", "r", "--yes")
    assert result.exit_code != Exit.OK and "--reveal" in result.stderr
