"""A whole system over TLS, as real processes: both stores, a router, the command and the clients."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from baton_client import CallError, Tls, connect_async
from baton_client.messages import CreateSandboxRequest, GetSandboxRequest, Sandbox, SandboxSpec
from libs.proving.servers.ports import free_port
from libs.rpc import health
from tests import forks
from tests.certificates import Authority, Pair, replace
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
BATON = Path(sys.executable).with_name("baton")
BOUND_SECONDS = 40.0
PREFIXES = {"simple_mcp": "SIMPLE_MCP_", "service_layer": "SERVICE_LAYER_", "router": "BATON_ROUTER_"}
PARTS = ("a", "b", "router")


@dataclass
class Process:
    """A process that is ready, and what it logs."""

    running: forks.Piped
    lines: list[str] = field(default_factory=list)

    async def read(self) -> None:
        async for line in self.running.stderr:
            self.lines.append(line.decode())

    def logged(self, text: str) -> bool:
        return any(text in line for line in self.lines)


async def spawn(program: str, settings: Mapping[str, object], *arguments: str) -> forks.Piped:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(tuple(PREFIXES.values()))}
    own = {f"{PREFIXES[program]}{name}".upper(): str(value) for name, value in settings.items()}
    return await forks.start(f"services.{program}", arguments, kept | own)


@asynccontextmanager
async def running(program: str, settings: Mapping[str, object]) -> AsyncIterator[Process]:
    found = Process(await spawn(program, settings))
    reading = asyncio.create_task(found.read())
    try:
        async with asyncio.timeout(BOUND_SECONDS):
            line = await found.running.stdout.readline()
        assert line.startswith(b"ready "), (line, found.lines)
        found.lines.append(line.decode())
        yield found
        found.running.send_signal(signal.SIGTERM)
        async with asyncio.timeout(BOUND_SECONDS):
            assert await found.running.wait() == 0
    finally:
        if found.running.returncode is None:
            found.running.kill()
            await found.running.wait()
        await reading


class System:
    """Addresses and certificates of the system."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority(directory)
        self.stranger = Authority(directory, "stranger")
        self.pairs = {name: self.authority.issue(name) for name in PARTS}
        self.operator = self.authority.issue("operator", "operator.baton")
        self.at = {name: f"127.0.0.1:{free_port()}" for name in ("a", "a-in", "b", "b-in", "router", "control")}
        self.http, self.metrics = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        self.processes: dict[str, Process] = {}

    def settings(self, name: str) -> dict[str, object]:
        pair = self.pairs[name]
        shared: dict[str, object] = {
            "event_log": f"sqlite:///{self.directory}/log.db",
            "tls_certificate": pair.certificate,
            "tls_key": pair.key,
            "tls_client_ca": self.authority.file,
            "tls_ca": self.authority.file,
        }
        if name == "router":
            return shared | {
                "public": self.at["router"],
                "control": self.at["control"],
                "http": self.http,
                "metrics": self.metrics,
                "store_a": self.at["a-in"],
                "store_b": self.at["b-in"],
                "control_store": f"sqlite:///{self.directory}/control.db",
                "tls_public_client_ca": self.authority.file,
            }
        other = "b-in" if name == "a" else "a-in"
        database = f"{self.directory}/a.db" if name == "a" else f"sqlite:///{self.directory}/b.db"
        return shared | {
            "public": self.at[name],
            "internal": self.at[f"{name}-in"],
            "other": self.at[other],
            "database": database,
        }

    def tls(self, pair: Pair | None = None, ca: Path | None = None) -> Tls:
        """Files of a client."""
        pair = pair or self.operator
        return Tls(ca=ca or self.authority.file, certificate=pair.certificate, key=pair.key)

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.file))
        context.load_cert_chain(self.operator.certificate, self.operator.key)
        return context

    async def shown(self, address: str) -> str:
        """Serial number of the certificate that a listener shows."""
        host, _, port = address.rpartition(":")
        context = self.context()
        context.set_alpn_protocols(["h2"] if address != self.http else ["http/1.1"])
        _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        found: Any = writer.get_extra_info("peercert")
        writer.close()
        return str(found["serialNumber"])

    async def get(self, address: str, path: str) -> str:
        host, _, port = address.rpartition(":")
        async with asyncio.timeout(BOUND_SECONDS):
            reader, writer = await asyncio.open_connection(host, int(port), ssl=self.context())
            writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
        return answer.decode()

    def options(self, *, ca: Path | None = None, pair: Pair | None = None) -> list[str]:
        """Options of the command."""
        pair = pair or self.operator
        files = ["--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key)]
        return ["--address", self.at["control"], "--tls-ca", str(ca or self.authority.file), *files]


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    found = System(tmp_path)
    init = await spawn("simple_mcp", found.settings("a"), "init")
    assert await init.wait() == 0
    async with (
        running("simple_mcp", found.settings("a")) as a,
        running("service_layer", found.settings("b")) as b,
        running("router", found.settings("router")) as router,
    ):
        found.processes = {"a": a, "b": b, "router": router}
        yield found


async def baton(*arguments: str) -> tuple[int, str]:
    """Exit code and output of the command."""
    process = await asyncio.create_subprocess_exec(
        BATON, *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT
    )
    async with asyncio.timeout(BOUND_SECONDS):
        output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


def sandbox(number: int) -> CreateSandboxRequest:
    made = Sandbox(account="acme", spec=SandboxSpec(image="debian:13"))
    return CreateSandboxRequest(sandbox_id=f"box-{number}", sandbox=made)


@pytest.mark.slow
async def test_a_system_serves_over_tls_with_certificates_on_both_sides(system: System) -> None:
    async with connect_async(system.at["router"], tls=system.tls()) as client:
        made = await client.CreateSandbox(sandbox(1))
        assert (await client.GetSandbox(GetSandboxRequest(name=made.name))).spec.image == "debian:13"
    assert "debian:13" in await system.get(system.http, f"/v1/{made.name}")
    metrics = await system.get(system.metrics, "/metrics")
    assert re.search(r"^baton_tls_certificate_days 29\.\d+", metrics, re.MULTILINE)
    code, output = await baton("status", *system.options())
    assert (code, "OFF" in output) == (0, True), output
    assert "router 30 days, A 30 days, B 30 days" in output
    files = ["--tls-ca", str(system.authority.file), *system.options()[4:]]
    listeners = [*system.at.values(), f"http://{system.http}"]
    assert await asyncio.to_thread(health.main, [*files, *listeners]) == 0
    # Strangers: without TLS, with another CA, without a certificate, with a stranger's certificate.
    refused = {
        (): "does it use TLS, or require a client's certificate?",
        tuple(system.options(ca=system.stranger.file)[2:]): "certificate is not from the CA in --tls-ca",
        tuple(system.options()[2:4]): "require a client's certificate?",
        (*system.options()[2:], "--tls-server-name", "x.example"): "another name: call it by that, or set --tls-server",
        ("--tls-key", str(system.operator.key)): "--tls-key: it is used with --tls-ca only",
    }
    for options, words in refused.items():
        code, output = await baton("status", "--address", system.at["control"], *options)
        assert code and words in output, output
    stranger = system.stranger.issue("them")
    for address in (system.at["router"], system.at["a-in"]):
        for tls in (False, system.tls(stranger), system.tls(ca=system.stranger.file)):
            async with connect_async(address, tls=tls, timeout=5) as client:
                with pytest.raises((CallError, grpc.RpcError)):
                    await client.GetSandbox(GetSandboxRequest(name=made.name))


@pytest.mark.slow
async def test_certificates_are_replaced_under_traffic_without_a_failed_call(system: System) -> None:
    stop = asyncio.Event()
    done = 0
    fetched = system.tls()

    async def traffic(client: Any, first: int) -> None:
        nonlocal done
        number = first
        while not stop.is_set():
            made = await client.CreateSandbox(sandbox(number))
            await client.GetSandbox(GetSandboxRequest(name=made.name))
            number += 1
            done += 1

    async with connect_async(system.at["router"], tls=fetched) as client, asyncio.TaskGroup() as group:
        for first in (1_000, 2_000, 3_000):
            group.create_task(traffic(client, first))
        await eventually(lambda: done > 5, BOUND_SECONDS)
        listeners = [*system.at.values(), system.http]
        before = {address: await system.shown(address) for address in listeners}
        for name in PARTS:
            system.authority.issue(name)

        async def replaced() -> bool:
            return all([await system.shown(address) != before[address] for address in listeners])

        await eventually(replaced, BOUND_SECONDS)
        at = done
        await eventually(lambda: done > at + 10, BOUND_SECONDS)
        # A broken replacement: the last good one stays.
        after = await system.shown(system.at["router"])
        replace(system.pairs["router"].certificate, b"not a certificate")
        router = system.processes["router"]
        await eventually(lambda: router.logged("the last good certificate stays in force"), BOUND_SECONDS)
        assert router.logged("tls_certificate:") and router.logged("has no valid certificate")
        assert await system.shown(system.at["router"]) == after
        assert "baton_tls_reload_failing 1.0" in await system.get(system.metrics, "/metrics")
        _, output = await baton("doctor", *system.options(), "-o", "json")
        (found,) = [one for one in json.loads(output)["findings"] if one["subject"] == "certificate of this router"]
        assert found["level"] == "WARN" and "has no valid certificate" in found["text"]
        at = done
        await eventually(lambda: done > at + 10, BOUND_SECONDS)
        stop.set()
    for process in system.processes.values():
        assert not process.logged("PRIVATE KEY")


@pytest.mark.slow
async def test_a_process_with_a_bad_file_does_not_start_and_says_why(tmp_path: Path) -> None:
    system = System(tmp_path)
    system.authority.issue("b", days=-1)
    process = await spawn("service_layer", system.settings("b"))
    async with asyncio.timeout(BOUND_SECONDS):
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert re.search(r"tls_certificate: .*b\.pem expired at .*: renew it", errors.decode())
