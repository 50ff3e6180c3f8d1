"""Secret fields are replaced wherever a message is shown; representations and settings show no secret."""

from __future__ import annotations

import logging

import pytest
from google.protobuf import json_format

from libs.contract.secrets import in_secret, redacted, shows_mark
from libs.errors import HIDDEN, Hidden, InvalidField
from libs.eventlog.port import Event
from libs.http.json_body import read_message
from libs.ownership.model import Row, Served, Store, Version
from libs.ownership.rules import Resource
from libs.pb.sandbox.v1 import sandbox_pb2
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.sandboxes.validation import check_new
from libs.settings import Settings, WrongSetting, load
from libs.store.outbox import ChangeEntry
from libs.store.port import Parked
from libs.telemetry.logs import JsonLines, TextLines
from libs.text import hide_password
from services.router.settings import RouterSettings
from services.service_layer.settings import ServiceLayerSettings

SECRET = "hunter2-hunter2"


def a_sandbox() -> sandbox_pb2.Sandbox:
    spec = sandbox_pb2.SandboxSpec(image="image:1", env={"KEY": SECRET})
    return sandbox_pb2.Sandbox(name="sandboxes/one", spec=spec, account="acme", annotations={"note": SECRET})


def test_values_of_secret_maps_are_replaced_and_their_keys_stay() -> None:
    sandbox = a_sandbox()
    shown = redacted(sandbox)
    assert dict(shown.spec.env) == {"KEY": HIDDEN} and dict(shown.annotations) == {"note": HIDDEN}
    assert (shown.name, shown.account, shown.spec.image) == ("sandboxes/one", "acme", "image:1")
    assert sandbox == a_sandbox(), "the message itself stays"
    assert shows_mark(shown) and not shows_mark(sandbox)


def test_secrets_are_found_at_any_depth_and_unknown_fields_are_dropped() -> None:
    answer = pb.ListSandboxesResponse(sandboxes=[a_sandbox(), a_sandbox()])
    newer = sandbox_pb2.Sandbox.FromString(a_sandbox().SerializeToString() + b"\xc2\x3e\x0f" + SECRET.encode())
    answer.sandboxes.append(newer)
    assert SECRET not in str(redacted(answer)) and SECRET.encode() not in redacted(answer).SerializeToString()
    flat = sandbox_pb2.FlatSandbox(env={"KEY": SECRET}, metadata={"team": "blue"})
    assert json_format.MessageToDict(redacted(flat)) == {"env": {"KEY": HIDDEN}, "metadata": {"team": "blue"}}


def test_a_message_without_secrets_is_not_copied() -> None:
    request = pb.GetSandboxRequest(name="sandboxes/one")
    assert redacted(request) is request


@pytest.mark.parametrize(
    ("path", "secret"),
    [
        ("sandbox.spec.env", True),
        ("sandbox.spec.env.KEY", True),
        ("sandbox.annotations[0]", True),
        ("sandbox", False),
        ("sandbox.spec.cpuMillis", False),
        ("sandbox.nothing", True),
        ("", True),
    ],
)
def test_a_path_leads_to_a_secret(path: str, secret: bool) -> None:
    kind = pb.CreateSandboxRequest.DESCRIPTOR
    assert in_secret(kind, path) is secret


@pytest.mark.parametrize("field", ["annotations", "env"])
def test_a_refused_secret_is_named_and_not_shown(field: str) -> None:
    sandbox = a_sandbox()
    (sandbox.annotations if field == "annotations" else sandbox.spec.env)["bad"] = SECRET + "\0"
    with pytest.raises(InvalidField) as caught:
        check_new(sandbox)
    assert "['bad']: *** is not valid" in caught.value.message and SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        f'{{"sandbox": {{"spec": {{"env": "{SECRET}"}}}}}}',
        f'{{"sandbox": {{"spec": {{"env": ["{SECRET}"]}}}}}}',
        f'{{"sandbox": {{"spec": {{"env": {{"A": ["{SECRET}"]}}}}}}}}',
        f'{{"sandbox": {{"annotations": {{"A": {{"x": "{SECRET}"}}}}}}}}',
        f'{{"sandbox": {{"annotations": {{"A": "{SECRET}\\ud800"}}}}}}',
        f'{{"sandbox": {{"annotations": {{}}, "annotations": "{SECRET}"}}}}',
        f'{{"sandbox": {{"spec": {{"env": {{}}, "env": {{"A": "{SECRET}"}}}}}}}}',
        f'{{"sandbox": {{"annotations": "{SECRET}", "annotations": {{}}}}}}',
    ],
)
def test_json_with_a_secret_of_a_wrong_type_is_refused_without_it(body: str) -> None:
    with pytest.raises(InvalidField) as caught:
        read_message(body.encode(), pb.CreateSandboxRequest())
    assert SECRET not in str(caught.value) and SECRET not in str(caught.value.metadata)


def test_representations_have_no_content() -> None:
    data = SECRET.encode()
    version = Version(0, 1)
    found = (
        Row("k", version, Store.A, version, True, data, 2),
        Served("ann", "1", b"", version, data),
        Resource(data, live=True, schema_version=2, answer=data),
        Event("k", data),
        ChangeEntry("k", version, data),
        Parked(0, 1, "k", "why", data),
        InvalidField("f", Hidden(), "something else"),
    )
    assert not [one for one in found if SECRET in repr(one) or SECRET in str(one)]


ADDRESSES = (
    f"postgresql://me:{SECRET}@host:5432/db",
    f"postgresql://me:a@{SECRET}@host/db",
    f"postgresql://me:a#{SECRET}@host/db",
    f"postgresql://me:a {SECRET}@host/db",
    f"postgresql://me@host/db?password={SECRET}",
    f"redis://:{SECRET}@host:6379/0",
    f"rediss://me:{SECRET}:more@host:x/0",
)


def shown_of(kind: type[Settings], monkeypatch: pytest.MonkeyPatch, prefix: str, **values: str) -> str:
    """The representation of the settings, or the error if one is not valid."""
    for name, value in {"event_log": "memory:", **values}.items():
        monkeypatch.setenv(f"{prefix}{name}".upper(), value)
    try:
        found = load(kind)
    except WrongSetting as error:
        return str(error)
    return f"{found!r} {found}"


@pytest.mark.parametrize("address", ADDRESSES)
def test_settings_show_no_password(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Valid ones by their representation, invalid ones by the error."""
    stores = {"store_a": "127.0.0.1:1", "store_b": "127.0.0.1:2"}
    shown = [
        shown_of(RouterSettings, monkeypatch, "BATON_ROUTER_", control_store=address, **stores),
        shown_of(ServiceLayerSettings, monkeypatch, "SERVICE_LAYER_", database=address),
        shown_of(ServiceLayerSettings, monkeypatch, "SERVICE_LAYER_", database="sqlite:///b.db", redis=address),
    ]
    assert not [text for text in shown if SECRET in text]
    assert [text for text in shown if HIDDEN in text]


def test_an_address_whose_password_hides_its_port_is_refused_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"postgresql://me:{SECRET}#x@host/db"
    shown = shown_of(ServiceLayerSettings, monkeypatch, "SERVICE_LAYER_", database=address)
    assert "special characters of a password as %XX" in shown and SECRET not in shown


def test_a_log_line_hides_the_password_of_an_address() -> None:
    try:
        raise ConnectionError(f"no route to {ADDRESSES[0]}")
    except ConnectionError as error:
        trace = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "lost %s: password=%s", (ADDRESSES[0], SECRET), trace)
    assert SECRET not in TextLines().format(record) and SECRET not in JsonLines().format(record)
    assert "postgresql://me:***@host:5432/db" in TextLines().format(record)


def test_passwords_are_hidden_and_other_text_stays() -> None:
    assert hide_password("http://127.0.0.1:80/x asked by me@host") == "http://127.0.0.1:80/x asked by me@host"
    assert hide_password("token_file=/run/token page_token=") == "token_file=/run/token page_token="
