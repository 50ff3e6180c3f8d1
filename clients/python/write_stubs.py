"""Generates baton-client's messages and methods from the contract's .proto files, or checks that they are fresh.

    python clients/python/write_stubs.py [--check]

The messages are built from a serialized descriptor at import, with public functions of protobuf. protoc's own modules
refuse every protobuf older than that protoc; these modules run with any protobuf since 4.25.
"""

from __future__ import annotations

import argparse
import ast
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto, MethodOptions

from libs.pb.baton.options.v1 import options_pb2

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
OUTPUT = Path(__file__).parent / "src" / "baton_client"
SERVICE = "sandbox/v1/sandbox_service.proto"
SOURCES = ("baton/options/v1/options.proto", "sandbox/v1/sandbox.proto", SERVICE)
"""Each file stands after its imports."""
TYPED = SOURCES[1:]
"""Files whose messages callers use."""
TITLE = '# ruff: noqa\n"""Generated from the contract by `make protos`. Do not edit."""\n'


def main() -> int:
    """Write the stubs, or check them; returns the exit code."""
    parser = argparse.ArgumentParser(description="Generate baton-client's messages and methods.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a file is not fresh")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        fresh = files(Path(folder))
    stale = [name for name, text in fresh.items() if not _same(OUTPUT / name, text)]
    for name in stale:
        if check:
            print(f"{OUTPUT / name} differs from the code that {PROTOS} generates. Run: make protos", file=sys.stderr)
        else:
            (OUTPUT / name).write_text(fresh[name])
    return 1 if check and stale else 0


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


def files(folder: Path) -> dict[str, str]:
    """Text of each generated file, by its path in the package."""
    image = folder / "image.binpb"
    _protoc(folder, ["--include_source_info", f"--descriptor_set_out={image}"])
    protos = {file.name: file for file in FileDescriptorSet.FromString(image.read_bytes()).file}
    # baton-client uses only the newest schema version.
    forms = {one.form for one in protos[SERVICE].service[0].options.Extensions[options_pb2.schema].forms}
    messages = {
        _module(name): [
            one.name for one in protos[name].message_type if f"{protos[name].package}.{one.name}" not in forms
        ]
        for name in TYPED
    }
    modules = {f"pb/{_module(name)}.py": _messages(folder, protos[name]) for name in SOURCES}
    stubs = {f"pb/{_module(name)}.pyi": _stubs(folder, name) for name in TYPED}
    return {
        **modules,
        **stubs,
        "pb/__init__.py": TITLE,
        "messages.py": _formatted(_exports(messages)),
        "methods.py": _formatted(_methods(protos[SERVICE])),
    }


def _protoc(folder: Path, arguments: Sequence[str]) -> None:
    google_api = Path(annotations_pb2.__file__).parents[2]
    paths = [PROTOS, google_api, Path(str(resources.files("grpc_tools") / "_proto"))]
    plugin = f"--plugin=protoc-gen-mypy={Path(sys.executable).parent / 'protoc-gen-mypy'}"
    outputs = [f"--python_out={folder}", f"--mypy_out=quiet:{folder}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", *(f"-I{path}" for path in paths), plugin, *outputs]
    subprocess.run([*command, *arguments, *SOURCES], check=True, cwd=folder, timeout=60)


def _module(proto: str) -> str:
    return f"{Path(proto).stem}_pb2"


def _messages(folder: Path, proto: FileDescriptorProto) -> str:
    """A module that builds the messages of one file. Its descriptor is the one in protoc's own module: a process that
    has both registers the same file twice, which is allowed."""
    tree = ast.parse((folder / proto.name.replace(".proto", "_pb2.py")).read_text())
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    call = next(one for one in calls if isinstance(one.func, ast.Attribute) and one.func.attr == "AddSerializedFile")
    lines = []
    for imported in proto.dependency:
        package = "baton_client.pb" if imported in SOURCES else ".".join(Path(imported).parent.parts)
        lines.append(f"from {package} import {_module(imported)} as _{_module(imported)}")
    data = ast.literal_eval(call.args[0])
    parts = "\n".join(f"    {data[at : at + 96]!r}" for at in range(0, len(data), 96))
    load = "from baton_client.loading import load as _load"
    head = "\n".join([*sorted(lines), load])
    return f"{TITLE}\n{head}\n\nDESCRIPTOR = _load(\n{parts},\n    globals(),\n)\n"


def _stubs(folder: Path, name: str) -> str:
    text = (folder / name.replace(".proto", "_pb2.pyi")).read_text()
    return text.replace("from sandbox.v1 import", "from baton_client.pb import")


def _exports(messages: Mapping[str, Sequence[str]]) -> str:
    imports = [f"from baton_client.pb.{module} import {', '.join(names)}" for module, names in messages.items()]
    names = sorted(name for some in messages.values() for name in some)
    return f"{TITLE}\n" + "\n".join(imports) + f"\n\n__all__ = {names!r}\n"


def _methods(proto: FileDescriptorProto) -> str:
    """The table of the service's methods, and a class of them for each kind of caller."""
    service = proto.service[0]
    path = f"/{proto.package}.{service.name}"
    comments = {tuple(one.path): one.leading_comments for one in proto.source_code_info.location}
    schema = service.options.Extensions[options_pb2.schema]
    used = {_message(name) for one in service.method for name in (one.input_type, one.output_type)}
    table, sync, asynchronous = [], [], []
    rules = {f"{path}/{method.name}": method.options.Extensions[options_pb2.method] for method in service.method}
    keys = {name: rule.key for name, rule in rules.items() if rule.key}
    for at, method in enumerate(service.method):
        comment = " ".join(comments.get((6, 0, 2, at), "").split())
        table.append(f"{_constant(method)} = Method({path + '/' + method.name!r}, {_rule(method)})")
        sync.append(_method(method, comment, asynchronous=False))
        asynchronous.append(_method(method, comment, asynchronous=True))
    return "\n".join(
        [
            TITLE,
            "from __future__ import annotations",
            "from collections.abc import AsyncGenerator, Generator",
            "from baton_client.calls import AsyncCaller, Caller, Metadata, Method, Received",
            f"from baton_client.messages import {', '.join(sorted(used))}",
            f"SCHEMA = ({schema.metadata!r}, {str(schema.newest)!r})",
            '"""The metadata that names the schema version of these messages."""',
            *table,
            f"KEYS = {keys!r}",
            '"""Form of the name with fields of the request, by path of a method that names one record."""',
            "class Methods(Caller):",
            f'    """The methods of {proto.package}.{service.name}."""',
            *sync,
            "class AsyncMethods(AsyncCaller):",
            f'    """The methods of {proto.package}.{service.name}, for asyncio."""',
            *asynchronous,
        ]
    )


def _rule(method: MethodDescriptorProto) -> str:
    reads = method.options.idempotency_level == MethodOptions.NO_SIDE_EFFECTS
    rule = method.options.Extensions[options_pb2.method]
    answer = _message(method.output_type)
    if not reads and not rule.request_id:
        raise ValueError(
            f"{method.name}: a write without a request id cannot be retried: give baton.options.v1.method one"
        )
    fields = {"request_id": rule.request_id, "resume_token": rule.watch.resume_token, "key": rule.key}
    return ", ".join([answer, *(f"{name}={field!r}" for name, field in fields.items() if field)])


def _method(method: MethodDescriptorProto, comment: str, *, asynchronous: bool) -> str:
    request, answer = _message(method.input_type), _message(method.output_type)
    kind = ("AsyncGenerator[{}, None]" if asynchronous else "Generator[{}, None, None]").format(answer)
    returns = kind if method.server_streaming else answer
    awaits = asynchronous and not method.server_streaming
    call = f"{'await ' if awaits else ''}self._{'watch' if method.server_streaming else 'call'}"
    documented = f'        """{comment}"""\n' if comment else ""
    return (
        f"    {'async ' if awaits else ''}def {method.name}(self, request: {request}, *, timeout: float | None = None,"
        f" metadata: Metadata = (), received: Received | None = None) -> {returns}:\n{documented}"
        f"        return {call}({_constant(method)}, request, timeout, metadata, received)"
    )


def _constant(method: MethodDescriptorProto) -> str:
    words = "".join(f"_{letter}" if letter.isupper() else letter for letter in method.name)
    return words.upper()


def _message(name: str) -> str:
    return name.rpartition(".")[2]


def _formatted(text: str) -> str:
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or "ruff"
    for arguments in (["check", "--fix", "--select", "I", "-q"], ["format", "-q"]):
        command = [ruff, *arguments, "--config", str(ROOT / "pyproject.toml"), "--stdin-filename", "generated.py", "-"]
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=60).stdout
    return text


if __name__ == "__main__":
    sys.exit(main())
