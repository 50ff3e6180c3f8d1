"""The columns of a row in the two layouts on SQLite."""

from __future__ import annotations

import pytest

from libs.ownership.model import Row, Store, Version
from libs.pb.sandbox.v1.sandbox_pb2 import Lease, Sandbox
from libs.sandboxes.schema import Schemas
from libs.store.sqlite_schema import Layout, odd_columns, values_of
from services.service_layer.store import embedded
from services.simple_mcp.store import flat

LAYOUTS = pytest.mark.parametrize("layout", [flat.LAYOUT, embedded.LAYOUT], ids=["flat", "embedded"])


def row() -> Row:
    sandbox = Sandbox(name="sandboxes/one", account="acme", lease=Lease(token="7", renewals=2), schema_version=2)
    version = Version(0, 1)
    return Row(sandbox.name, version, Store.A, version, True, sandbox.SerializeToString(), 2)


@LAYOUTS
def test_a_payload_is_parsed_once_for_all_columns(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Row] = []
    model_of = Schemas.model_of

    def counted(self: Schemas, of: Row) -> Sandbox:
        parsed.append(of)
        return model_of(self, of)

    monkeypatch.setattr(Schemas, "model_of", counted)
    assert values_of(row(), layout)[-1] == "7/2"
    assert len(parsed) == 1


@LAYOUTS
def test_a_lease_that_another_program_wrote_is_odd(layout: Layout) -> None:
    *own, lease = layout.project(row())
    assert odd_columns(layout, row(), own) == odd_columns(layout, row(), [*own, lease]) == []
    assert odd_columns(layout, row(), [*own, "8/0"]) == ["lease"]
