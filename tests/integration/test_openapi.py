"""The OpenAPI document as all three processes serve it, and schemathesis, which makes requests from it.

Schemathesis asks for examples, for each limit of each parameter, and at random, with requests that the document allows
and with others; it holds every answer to the document. Its seed is fixed here, and a few examples an operation keep
the test short. A longer run, against processes that are started for it, with another seed each time:

    BATON_TEST_EXAMPLES=300 .venv/bin/python -m pytest -q -s tests/integration/test_openapi.py -k schemathesis
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from libs.proving.servers.ports import free_port
from libs.proving.trial.world import World
from tests.http_client import ask

ROOT = Path(__file__).parents[2]
SHIPPED = json.loads((ROOT / "libs/pb/sandbox/v1/openapi.json").read_text())
EXAMPLES = os.environ.get("BATON_TEST_EXAMPLES", "")
RUN_SECONDS = 300 + 20 * int(EXAMPLES or 0)

SETTINGS = {"a": "SIMPLE_MCP_HTTP", "b-1": "SERVICE_LAYER_HTTP", "router-1": "BATON_ROUTER_HTTP"}

CONFIG = """
[checks]
not_a_server_error.expected-statuses = ["2XX", "3XX", "4XX", 503, 504]
"""
"""A deadline that has passed is no fault of the server: the shortest ones are a caller's. The hooks limit how often the
server may be unavailable."""

ALL_PHASES = "examples,coverage,fuzzing,stateful"
PHASES = {"a": ALL_PHASES, "b-1": "examples,fuzzing,stateful", "router-1": "examples,fuzzing,stateful"}
"""The slow phase, "coverage", asks for each limit of each parameter: of the one core that all three have."""

UNCHECKED = "positive_data_acceptance"
"""The document has the types of the fields. The rules beyond them are in its descriptions, for people: which state
may follow which, that a filter is of this form. So it allows requests that are refused."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def addresses(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, str]]:
    """Addresses of the HTTP listeners of A, B in one file, and a router."""
    world = World.embedded(tmp_path_factory.mktemp("world"))
    found = {name: f"127.0.0.1:{free_port()}" for name in SETTINGS}
    for name, setting in SETTINGS.items():
        environment = world.nodes[name].process.command.env
        assert isinstance(environment, dict)
        environment[setting] = found[name]
    async with world.running():
        yield found


@pytest.mark.asyncio(loop_scope="module")
async def test_all_three_serve_the_same_document_and_page(addresses: dict[str, str]) -> None:
    documents = {name: await ask(address, "GET", "/openapi.json") for name, address in addresses.items()}
    assert {answer.status for answer in documents.values()} == {200}
    assert len({answer.body for answer in documents.values()}) == 1
    assert json.loads(documents["a"].body) == SHIPPED
    pages = {name: (await ask(address, "GET", "/")).body for name, address in addresses.items()}
    assert len(set(pages.values())) == 1


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", list(SETTINGS))
async def test_schemathesis_finds_no_answer_that_the_document_does_not_have(
    addresses: dict[str, str], name: str, tmp_path: Path
) -> None:
    chosen = ["-n", EXAMPLES] if EXAMPLES else ["-n", "5", "--generation-deterministic"]
    phases = ALL_PHASES if EXAMPLES else PHASES[name]
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    command = [
        *(str(Path(sys.executable).parent / "st"), "run", f"http://{addresses[name]}/openapi.json"),
        *(
            "--header",
            "sandbox-schema-version: 2",
            "--exclude-checks",
            UNCHECKED,
            "--continue-on-failure",
            "--phases",
            phases,
        ),
        *("--warnings", "off", "--no-color", "--request-timeout", "30", "--output-sanitize", "false", *chosen),
    ]
    hooks = {"SCHEMATHESIS_HOOKS": "tests.integration.schemathesis_hooks", "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=tmp_path,
        env=os.environ | hooks,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(RUN_SECONDS):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode()
    print(text[-2000:])
    assert process.returncode == 0, text
    assert f"Tested: {len([1 for verbs in SHIPPED['paths'].values() for _ in verbs])}" in text
