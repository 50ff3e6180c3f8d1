"""Generates Python modules and stubs from a tree of .proto files, or checks that they are fresh.

    python protos/generate.py PROTO_ROOT OUTPUT_ROOT IMPORT_PREFIX [--check | --image FILE]

protoc writes imports that start at the proto root (`from sandbox.v1 import sandbox_pb2`). They are rewritten to start
at the place where the module lives (`from libs.pb.sandbox.v1 import sandbox_pb2`): for the tree itself by
IMPORT_PREFIX, for this project's own protos, which every tree may import, by `libs.pb`. Google's modules come from
their own packages.
"""

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet
from grpc_tools import protoc

from libs.http.comments import Comments

PROJECT_ROOT = Path(__file__).parents[1]
OWN_PROTOS = PROJECT_ROOT / "protos"
OWN_PREFIX = "libs.pb"

COMMENTS_HEAD = '''"""The comments of the .proto files and their examples, by full name. Generated: do not edit."""

from typing import Any

COMMENTS: dict[str, tuple[str, Any]] = {
'''

FIELDS_HEAD = '''"""The names of the fields of each message, by its full name. Generated: do not edit."""

FIELDS: dict[str, str] = {
'''


@dataclass(frozen=True, slots=True)
class Tree:
    """Where the .proto files are, where the modules go, and the import path of the latter."""

    protos: Path
    output: Path
    prefix: str

    def sources(self) -> list[Path]:
        """The .proto files, relative to the root, in the order of their names."""
        return sorted(path.relative_to(self.protos) for path in self.protos.rglob("*.proto"))


def main() -> int:
    """Do what the command line says; 0 if done, or fresh."""
    parser = argparse.ArgumentParser(description="Generate Python modules from a tree of .proto files.")
    parser.add_argument("protos", type=Path, help="root of the .proto files")
    parser.add_argument("output", type=Path, help="root of the generated modules; holds nothing else")
    parser.add_argument("prefix", help="import path of the output root, for example libs.pb")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="change nothing; fail if the output is not fresh")
    mode.add_argument("--image", type=Path, help="write a descriptor image with comments instead, for buf lint")
    arguments = parser.parse_args()
    tree = Tree(arguments.protos.resolve(), arguments.output.resolve(), arguments.prefix)
    if not tree.sources():
        parser.error(f"{arguments.protos} holds no .proto file")
    if arguments.image:
        arguments.image.parent.mkdir(parents=True, exist_ok=True)
        run_protoc(tree, ["--include_imports", "--include_source_info", f"--descriptor_set_out={arguments.image}"])
        return 0
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(tree, fresh)
        if arguments.check:
            return check(tree, fresh)
        replace(tree, fresh)
    return 0


def generate(tree: Tree, folder: Path) -> None:
    """Write modules and stubs of all sources below `folder`, with imports rewritten."""
    outputs = ("--python_out=", "--mypy_out=quiet:", "--grpc_python_out=", "--mypy_grpc_out=quiet:")
    # The plugins are found beside the running interpreter, whether or not its environment is activated.
    plugins = [
        f"--plugin={name}={Path(sys.executable).parent / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    ]
    run_protoc(tree, [*plugins, *(f"{output}{folder}" for output in outputs)])
    own = Tree(OWN_PROTOS, PROJECT_ROOT / "libs" / "pb", OWN_PREFIX)
    prefixes = dict.fromkeys(own.sources(), own.prefix) | dict.fromkeys(tree.sources(), tree.prefix)
    for module in [*folder.rglob("*.py"), *folder.rglob("*.pyi")]:
        module.write_text(rewrite_imports(module.read_text(), prefixes))
    write_comments(tree, folder)
    for package in {folder, *(path.parent for path in folder.rglob("*.py"))}:
        while package != folder.parent:
            (package / "__init__.py").touch()
            package = package.parent


def write_comments(tree: Tree, folder: Path) -> None:
    """Write `comments.py` and `fields.py`."""
    with tempfile.TemporaryDirectory() as place:
        image = Path(place) / "image.binpb"
        run_protoc(tree, ["--include_source_info", f"--descriptor_set_out={image}"])
        files = FileDescriptorSet.FromString(image.read_bytes())
    found = Comments.of(files).found
    lines = [f"    {name!r}: ({found[name].text!r}, {found[name].example!r}),\n" for name in sorted(found)]
    (folder / "comments.py").write_text(COMMENTS_HEAD + "".join(lines) + "}\n")
    names = dict(pair for file in files.file for message in file.message_type for pair in fields(file.package, message))
    lines = [f"    {name!r}: {names[name]!r},\n" for name in sorted(names)]
    (folder / "fields.py").write_text(FIELDS_HEAD + "".join(lines) + "}\n")


def fields(scope: str, message: DescriptorProto) -> Iterator[tuple[str, str]]:
    """The message and its nested ones: full name, and the names of the fields with spaces between them."""
    name = f"{scope}.{message.name}"
    yield name, " ".join(field.name for field in message.field)
    for nested in message.nested_type:
        yield from fields(name, nested)


def rewrite_imports(text: str, prefixes: dict[Path, str]) -> str:
    """Make the imports of the given sources' modules start with their prefix."""
    for source, prefix in prefixes.items():
        package, module = ".".join(source.parent.parts), f"{source.stem}_pb2"
        if package:
            pattern, place = rf"^from {re.escape(package)} import {module}\b", f"{prefix}.{package}"
        else:
            pattern, place = rf"^import {module}\b", prefix
        text = re.sub(pattern, f"from {place} import {module}", text, flags=re.MULTILINE)
    return text


def run_protoc(tree: Tree, arguments: list[str]) -> None:
    """Run protoc over all sources of the tree. Exits with its code if it fails; it has then said why."""
    google_api = Path(annotations_pb2.__file__).parents[2]
    google_protobuf = resources.files("grpc_tools") / "_proto"
    paths = dict.fromkeys([tree.protos, OWN_PROTOS, google_api, google_protobuf])
    sources = [str(source) for source in tree.sources()]
    code = protoc.main(["protoc", *(f"-I{path}" for path in paths), *arguments, *sources])
    if code:
        sys.exit(code)


def check(tree: Tree, fresh: Path) -> int:
    """Compare the tree's output with what is fresh; names every file that differs. 0 if none does."""
    problems = []
    for name in sorted(generated(fresh) | generated(tree.output)):
        old, new = tree.output / name, fresh / name
        if not old.exists():
            problems.append(f"{old} is missing")
        elif not new.exists():
            problems.append(f"{old} is generated from nothing")
        elif old.read_bytes() != new.read_bytes():
            problems.append(f"{old} is not what {tree.protos} generates")
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print("run: make protos", file=sys.stderr)
    return 1 if problems else 0


def replace(tree: Tree, fresh: Path) -> None:
    """Put the fresh files in the output's place; files that did not change are left alone."""
    for name in sorted(generated(tree.output) - generated(fresh)):
        (tree.output / name).unlink()
    for name in sorted(generated(fresh)):
        old, new = tree.output / name, fresh / name
        if not old.exists() or old.read_bytes() != new.read_bytes():
            old.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(new, old)


def generated(root: Path) -> set[Path]:
    """The modules and stubs below a root, relative to it."""
    return {path.relative_to(root) for suffix in ("*.py", "*.pyi") for path in root.rglob(suffix)}


if __name__ == "__main__":
    sys.exit(main())
