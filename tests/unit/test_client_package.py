"""The distribution baton-client: it depends on nothing of this project, and its messages are the contract's."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from baton_client import loading, messages, methods
from baton_client.pb import sandbox_pb2 as theirs
from libs.contract.descriptors import Contract
from libs.pb.sandbox.v1 import sandbox_pb2 as ours

CLIENT = Path(__file__).parents[2] / "clients" / "python"
SOURCES = sorted((CLIENT / "src").rglob("*.py"))
MAY_IMPORT = {"baton_client", "google", "grpc", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_client_imports_its_dependencies_and_nothing_else(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert {name.partition(".")[0] for name in names} <= MAY_IMPORT


def test_the_client_names_nothing_of_the_services_inside() -> None:
    for path in (path for path in CLIENT.rglob("*.py*") if path.suffix in (".py", ".pyi") and "src" in path.parts):
        text = path.read_text()
        assert not [word for word in ("libs", "simple_mcp", "service_layer") if word in text], path


def test_no_dependency_has_an_upper_bound() -> None:
    project = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == ["grpcio>=1.60", "googleapis-common-protos>=1.62", "protobuf>=4.25"]


def test_every_method_of_the_contract_is_there_for_both_kinds_of_caller() -> None:
    contract = Contract.load("libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService")
    for method in contract.methods.values():
        assert hasattr(methods.Methods, method.name)
        assert hasattr(methods.AsyncMethods, method.name)
        assert hasattr(messages, f"{method.name}Request")


def test_a_process_that_has_stubs_of_its_own_uses_the_same_messages() -> None:
    assert id(theirs.Sandbox) == id(ours.Sandbox)


@pytest.mark.parametrize("first", ["libs.pb.sandbox.v1.sandbox_service_pb2", "baton_client.messages"])
def test_the_client_and_other_stubs_can_be_imported_in_either_order(first: str) -> None:
    code = f"import {first}, baton_client.messages, libs.pb.sandbox.v1.sandbox_service_pb2"
    environment = {"PYTHONPATH": f"{CLIENT / 'src'}:{CLIENT.parents[1]}"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)


def test_stubs_of_another_release_are_used_instead_of_a_second_copy() -> None:
    code = (
        "from google.protobuf import descriptor_pool, descriptor_pb2 as pb\n"
        "pool = descriptor_pool.Default()\n"
        "other = pb.FileDescriptorProto(name='x/y.proto', package='x')\n"
        "other.message_type.add(name='Y')\n"
        "pool.AddSerializedFile(other.SerializeToString())\n"
        "other.message_type.add(name='Z')\n"
        "from baton_client.loading import load\n"
        "found = {'__name__': 'here'}\n"
        "load(other.SerializeToString(), found)\n"
        "assert found['Y'].DESCRIPTOR.full_name == 'x.Y' and 'Z' not in found\n"
        "other.name = 'y.proto'\n"
        "try:\n"
        "    load(other.SerializeToString(), found)\n"
        "except ImportError as error:\n"
        "    assert str(error).startswith('y.proto: this process has loaded its messages')\n"
        "else:\n"
        "    raise AssertionError\n"
    )
    environment = {"PYTHONPATH": str(CLIENT / "src")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)
    assert loading.load.__doc__
