"""Builds the Go client as its users do: plugins by `go install`, code by `buf generate`, then `go build`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from libs.proving.servers import locate

ROOT = Path(__file__).parents[1]
CLIENTS = ROOT / "clients" / "go"
EXAMPLE = CLIENTS / "example"
BUILD = ROOT / "build" / "go"
BUILD_SECONDS = 600.0
"""The first build compiles gRPC."""


def go_client(name: str = "example") -> Path:
    """Path of the built program. `name`: its folder."""
    environment = {**os.environ, "GOBIN": str(BUILD / "bin"), "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    go = str(locate.go())
    source = BUILD / name
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(CLIENTS / name, source)
    run([go, "install", "tool"], source, environment)
    generate({"protoc-gen-go": source / "gen", "protoc-gen-go-grpc": source / "gen"})
    run([go, "vet", "."], source, environment)
    run([go, "build", "-o", str(BUILD / "bin" / name), "."], source, environment)
    return BUILD / "bin" / name


def generate(outputs: dict[str, Path]) -> None:
    """Run `buf generate` with the project's buf.gen.yaml, for the plugins named here."""
    BUILD.mkdir(parents=True, exist_ok=True)
    image = BUILD / "protos.binpb"
    python = sys.executable
    run([python, "protos/generate.py", "protos", "libs/pb", "libs.pb", "--image", str(image)], ROOT, dict(os.environ))
    template = yaml.safe_load((ROOT / "buf.gen.yaml").read_text())
    template["inputs"][0]["binary_image"] = str(image)
    template["plugins"] = list(_plugins(template["plugins"], outputs))
    assert len(template["plugins"]) == len(outputs)
    path = f"{BUILD / 'bin'}:{Path(python).parent}:{os.environ['PATH']}"
    buf = str(Path(python).parent / "buf")
    run([buf, "generate", "--template", json.dumps(template)], ROOT, {**os.environ, "PATH": path})


def _plugins(plugins: list[dict[str, Any]], outputs: dict[str, Path]) -> Iterable[dict[str, Any]]:
    for plugin in plugins:
        output = outputs.get(plugin.get("local") or plugin["protoc_builtin"])
        if output is not None:
            yield {**plugin, "out": str(output)}


def run(command: list[str], folder: Path, environment: dict[str, str], seconds: float = BUILD_SECONDS) -> str:
    """Output of the command. Raises AssertionError with its errors."""
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=seconds
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout
