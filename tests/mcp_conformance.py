"""Runs the MCP conformance suite and the MCP inspector against A, B and a router: `make mcp-conformance`.

`tests/mcp_conformance.yml` lists the scenarios that need a server made for them. Any other one that fails, and a listed
one that passes, ends this with 1.

    python -m tests.mcp_conformance FOLDER    # with the Node packages: FOLDER/node_modules
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import tempfile
from pathlib import Path

from tests.system.programs import PLACES, running_programs

BASELINE = Path(__file__).with_suffix(".yml")
SECONDS = 300.0
_TOTAL = re.compile(r"Total: (\d+) passed, (\d+) failed")


async def main(folder: Path) -> int:
    failed = False
    with tempfile.TemporaryDirectory() as work:
        async with running_programs(Path(work)) as programs:
            for place in PLACES:
                url = programs.url(place)
                code, output = await _node(
                    folder, "conformance", "server", "--url", url, "--expected-failures", str(BASELINE), "-o", work
                )
                found = _TOTAL.search(output)
                figures = f"{found[1]} passed, {found[2]} that need a server made for them" if found else ""
                print(f"{place}: conformance exit {code}: {figures}")
                if code or not found:
                    print(output)
                    failed = True
                failed |= not await _inspect(folder, place, url)
    return 1 if failed else 0


async def _inspect(folder: Path, place: str, url: str) -> bool:
    code, output = await _node(folder, "mcp-inspector", "--cli", url, "--transport", "http", "--method", "tools/list")
    try:
        tools = [tool["name"] for tool in json.loads(output)["tools"]]
    except (ValueError, KeyError, TypeError):
        tools = []
    print(f"{place}: inspector exit {code}: {len(tools)} tools: {', '.join(tools)}")
    if code or not tools:
        print(output)
    return not code and bool(tools)


async def _node(folder: Path, program: str, *arguments: str) -> tuple[int, str]:
    """Exit code and output, with the Node that is installed beside the program."""
    programs = (folder / "node_modules" / ".bin").resolve()
    process = await asyncio.create_subprocess_exec(
        programs / program,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
    )
    try:
        async with asyncio.timeout(SECONDS):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, output.decode(errors="replace")


if __name__ == "__main__":
    sys.exit(asyncio.run(main(Path(sys.argv[1]))))
