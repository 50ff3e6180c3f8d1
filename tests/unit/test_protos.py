"""The guard of the protos: a change that other releases could not read is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorSet

from libs.pb.baton.replication.v1 import replication_pb2
from libs.pb.sandbox.v1 import sandbox_pb2

ROOT = Path(__file__).parents[2]
BUF = Path(sys.executable).parent / "buf"
BASELINE = ROOT / "protos" / "baseline.binpb"


def breaking(image: Path) -> str:
    """The output of buf against the baseline, with the arguments of `make lint`."""
    paths = ["breaking", image, "--against", BASELINE, "--config", ROOT / "buf.yaml", "--exclude-imports"]
    assert f"--against {BASELINE.relative_to(ROOT)} --config buf.yaml" in (ROOT / "Makefile").read_text()
    return subprocess.run([BUF, *map(str, paths)], capture_output=True, text=True, check=False, timeout=60).stdout


@pytest.mark.parametrize("broken", [False, True])
def test_a_field_that_changes_its_type_is_a_breaking_change(tmp_path: Path, broken: bool) -> None:
    protos = FileDescriptorSet.FromString(BASELINE.read_bytes())
    sandbox = next(file for file in protos.file if file.name == "sandbox/v1/sandbox.proto").message_type[0]
    if broken:
        field = next(field for field in sandbox.field if field.name == "account")
        field.type = FieldDescriptorProto.TYPE_INT64
    image = tmp_path / "image.binpb"
    image.write_bytes(protos.SerializeToString())
    assert ('Field "7" with name "account" on message "Sandbox" changed type' in breaking(image)) is broken


def test_protoc_compiles_the_protos_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "protos/generate.py", "protos", "libs/pb", "libs.pb", "--image", tmp_path / "image"]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout + done.stderr == ""


def test_no_field_of_version_1_means_something_else_in_the_newest_version() -> None:
    """Their messages share numbers: each form keeps the other one's fields under the same numbers."""
    flat, newest = sandbox_pb2.FlatSandbox.DESCRIPTOR, sandbox_pb2.Sandbox.DESCRIPTOR
    for field in flat.fields:
        other = newest.fields_by_number.get(field.number)
        assert other is None or other.name == field.name
    taken = range(30, 39)
    assert {field.number for field in flat.fields if field.name not in newest.fields_by_name} == set(taken)
    proto = DescriptorProto()
    newest.CopyToProto(proto)
    reserved = {number for part in proto.reserved_range for number in range(part.start, part.end)}
    assert reserved == set(taken)


def test_an_exported_page_is_a_request_to_adopt_it_as_it_is() -> None:
    """A copying client passes the bytes on."""
    page, request = replication_pb2.ExportRecordsResponse.DESCRIPTOR, replication_pb2.AdoptRecordsRequest.DESCRIPTOR
    records = page.fields_by_name["records"]
    taken = request.fields_by_number[records.number]
    assert (taken.name, taken.message_type) == ("records", records.message_type)
    proto = DescriptorProto()
    request.CopyToProto(proto)
    others = {field.number for field in page.fields} - {records.number}
    assert others == {number for part in proto.reserved_range for number in range(part.start, part.end)}
