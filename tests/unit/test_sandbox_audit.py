"""Findings about single sandboxes: each kind is found, and valid data has none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from libs.ownership.limits import MAX_PAYLOAD_BYTES
from libs.ownership.model import Row, Store, Version
from libs.pb.sandbox.v1.sandbox_pb2 import Lease, Sandbox
from libs.sandboxes import validation
from libs.sandboxes.audit import KINDS, RAW, SandboxAudit
from libs.sandboxes.schema import FLAT, SCHEMAS, STRUCTURED, Schemas, read_model, write_model

NOW = 1_800_000_000.0
KEY = "sandboxes/one"


def clean(**fields: Any) -> Sandbox:
    sandbox = Sandbox(
        **{"name": KEY, "account": "acme", "state": Sandbox.STATE_RUNNING, "revision": 7, "etag": '"0-7"', **fields}
    )
    sandbox.spec.image = "image:1"
    sandbox.spec.timeout.FromMilliseconds(1500)
    sandbox.create_time.FromSeconds(int(NOW) - 10)
    return sandbox


def row_of(sandbox: Sandbox, key: str = KEY, version: int = 2) -> Row:
    at = Version(0, 7)
    return Row(key, at, Store.A, at, True, SCHEMAS.write(sandbox, version), version)


def kinds(row: Row, schemas: Schemas = SCHEMAS) -> list[str]:
    return [finding.kind for finding in SandboxAudit(schemas).findings(row, NOW)]


@pytest.mark.parametrize("version", SCHEMAS.versions)
def test_a_clean_sandbox_has_no_findings_in_any_schema_version(version: int) -> None:
    sandbox = clean(labels={"team": "red"}, annotations={"note": "ünï"})
    sandbox.spec.command.extend(["sh", "-c", "true"])
    sandbox.spec.env.update({"PORT": "80"})
    assert SandboxAudit().findings(row_of(sandbox, version=version), NOW) == []


def test_a_stub_has_no_findings() -> None:
    assert kinds(replace(row_of(clean()), payload=b"", live=False)) == []


@pytest.mark.parametrize(
    ("column", "text", "kind"),
    [
        ("env", '{"PORT": 80', "bad-json"),
        ("metadata", "team=red", "bad-json"),
        ("command", '{"not": "a list"}', "bad-json"),
        ("env", '{"PORT": 80}', "odd-value"),
        ("command", '["sleep", 10]', "odd-value"),
        ("state", "zombie", "impossible-state"),
        ("cpu", "two", "odd-value"),
        ("updated_at", "yesterday", "odd-value"),
        ("id", "", "invalid-name"),
    ],
)
def test_what_an_old_column_had_that_made_no_sense_is_found(column: str, text: str, kind: str) -> None:
    assert kinds(row_of(clean(annotations={f"{RAW}{column}": text}))) == [kind]


def test_no_finding_shows_an_environment_a_command_or_a_label() -> None:
    secret = "hunter2"
    sandbox = clean(annotations={f"{RAW}{name}": f'["{secret}", {{' for name in ("env", "command", "metadata")})
    sandbox.labels[secret] = f"{secret} {secret}"
    sandbox.spec.env["A B"] = secret
    sandbox.spec.command.append(f"{secret}\0")
    found = SandboxAudit().findings(row_of(sandbox), NOW)
    assert len(found) == 6
    assert not any(secret in finding.detail for finding in found)


@pytest.mark.parametrize("state", [Sandbox.STATE_UNSPECIFIED, 9])
def test_a_state_that_no_sandbox_has_is_found(state: Any) -> None:
    assert kinds(row_of(clean(state=state))) == ["impossible-state"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Dirty Name", "old-name"),
        ("SB-1", "old-name"),
        ("user@host", "old-name"),
        ("a.b", "old-name"),
        ("x" * 64, "old-name"),
        ("-x", "old-name"),
        ("a/b", "no-rest-path"),
        (".", "no-rest-path"),
        ("..", "no-rest-path"),
        ("x" * 247, "unreachable-name"),
    ],
)
def test_a_name_that_no_client_could_create_is_found(name: str, kind: str) -> None:
    assert kinds(row_of(clean(name=f"sandboxes/{name}"), f"sandboxes/{name}")) == [kind]
    assert KINDS[kind].acceptable == (kind != "unreachable-name")


def test_a_sandbox_that_says_it_is_another_one_is_found() -> None:
    assert kinds(row_of(clean(name="sandboxes/two"))) == ["invalid-name"]


@pytest.mark.parametrize(
    ("account", "kind"), [("", "dangling-owner"), (" ", "dangling-owner"), ("größe", "beyond-contract")]
)
def test_an_account_that_is_nobodys_or_odd_is_found(account: str, kind: str) -> None:
    assert kinds(row_of(clean(account=account))) == [kind]


@pytest.mark.parametrize(("ahead", "found"), [(299.0, []), (301.0, ["future-time"])])
def test_a_time_in_the_future_is_found(ahead: float, found: list[str]) -> None:
    sandbox = clean()
    sandbox.update_time.FromSeconds(int(NOW + ahead))
    assert kinds(row_of(sandbox)) == found


@pytest.mark.parametrize(
    ("holder", "token", "ended_seconds_ago", "orphaned"),
    [
        ("w", "0.7", 10, False),
        ("w", "0.7", 3600, False),
        ("w", "0.7", 90_000, True),
        ("", "0.7", 10, True),
        ("w", "", 10, True),
        ("w", "0.8", 10, True),
        ("w", "1.1", 10, True),
        ("w", "7", 10, True),
        ("w", "0.x", 10, True),
    ],
)
def test_a_lease_that_nobody_can_hold_any_more_is_found(
    holder: str, token: str, ended_seconds_ago: int, orphaned: bool
) -> None:
    sandbox = clean(lease=Lease(holder=holder, token=token))
    sandbox.lease.ttl.FromSeconds(30)
    sandbox.lease.acquire_time.FromSeconds(int(NOW) - ended_seconds_ago - 30)
    assert kinds(row_of(sandbox)) == (["orphaned-lease"] if orphaned else [])


def test_a_lease_that_was_renewed_ends_later() -> None:
    sandbox = clean(lease=Lease(holder="w", token="0.7"))
    sandbox.lease.acquire_time.FromSeconds(int(NOW) - 10 * 86_400)
    sandbox.lease.renew_time.FromSeconds(int(NOW) - 10)
    assert kinds(row_of(sandbox)) == []


def test_what_is_larger_than_a_client_may_make_it_is_found_once() -> None:
    many = clean()
    many.spec.env.update({f"NAME_{number}": "v" for number in range(validation.MAX_ENV + 1)})
    long = clean(annotations={"note": "x" * (validation.MAX_ANNOTATIONS_BYTES + 1)})
    wide = clean()
    wide.spec.command.append("x" * (validation.MAX_COMMAND_BYTES + 1))
    assert [kinds(row_of(one)) for one in (many, long, wide)] == [["oversize"]] * 3


def test_a_record_that_no_event_can_hold_blocks() -> None:
    sandbox = clean(annotations={"note": "x" * MAX_PAYLOAD_BYTES})
    assert kinds(row_of(sandbox)) == ["too-large"]
    assert not KINDS["too-large"].acceptable


@pytest.mark.parametrize(("payload", "version"), [(b"\xff\xff\xff", 2), (b"", 1), (None, 99)])
def test_what_cannot_be_read_blocks(payload: bytes | None, version: int) -> None:
    row = row_of(clean())
    row = replace(row, payload=row.payload if payload is None else payload, schema_version=version)
    assert kinds(row) == (["unreadable"] if row.payload else [])
    assert SandboxAudit().views(row) == {}
    assert not KINDS["unreadable"].acceptable


def _forgetful(sandbox: Sandbox) -> bytes:
    sandbox.ClearField("annotations")
    return write_model(sandbox)


def test_a_conversion_that_loses_something_blocks() -> None:
    forgetful = Schemas((FLAT, STRUCTURED, replace(STRUCTURED, version=3, write=_forgetful, read=read_model)))
    row = row_of(clean(annotations={"note": "kept"}))
    assert kinds(row) == []
    assert kinds(row, forgetful) == ["lossy-conversion"]
    assert not KINDS["lossy-conversion"].acceptable


def test_fields_that_are_not_known_come_back_from_every_conversion() -> None:
    payload = SCHEMAS.write(clean(), 2) + b"\xc2\x3e\x05later"
    row = replace(row_of(clean()), payload=payload)
    assert kinds(row) == []
    assert all(b"later" in view for view in SandboxAudit().views(row).values())


def test_clients_of_each_version_read_their_own_bytes() -> None:
    row = row_of(clean())
    views = SandboxAudit().views(row)
    assert set(views) == set(SCHEMAS.versions)
    assert views[2] == row.payload != views[1]


def test_names_that_a_person_would_take_for_the_same_fold_alike() -> None:
    folded = SandboxAudit().folded
    assert folded("sandboxes/SB-1") == folded("sandboxes/sb-1")
    assert folded("sandboxes/straße") == folded("sandboxes/STRASSE")
    assert folded("sandboxes/sb-1") != folded("sandboxes/sb-2")
