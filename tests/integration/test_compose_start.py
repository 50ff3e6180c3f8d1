"""The commands, settings and health checks of docker-compose.yml, started in its order beside the tests' own servers.

A container's addresses and directories are replaced by ones of this machine; all else is as the file says.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.compose.make_secrets import make_secrets
from libs.proving.servers.kafka import Kafka
from libs.proving.servers.ports import free_port
from libs.proving.servers.process import Command, ServerProcess
from libs.proving.servers.redis import Redis
from tests import composed
from tests.composed import ROOT, Composed

START_SECONDS = 120.0
BETWEEN_OURS = ("simple-mcp:50052", "service-layer:50062", "router:7600")
METRICS = ("9464", "9465", "9466")
LISTENERS = ("50051", "50052", "50053", "50061", "50062", "50063", "7600", "7680", "7700", *METRICS)


class LocalHost:
    """This machine in place of the containers: a port for each listener, a directory for each volume."""

    def __init__(self, directory: Path, servers: dict[str, str]) -> None:
        self._directory = directory
        ports = {port: free_port() for port in LISTENERS}
        self._places = {
            "/run/secrets": str(directory / "secrets"),
            **servers,
            **{name: f"127.0.0.1:{ports[name.partition(':')[2]]}" for name in BETWEEN_OURS},
            # Listeners, and health checks that ask them.
            **{f"0.0.0.0:{port}": f"127.0.0.1:{own}" for port, own in ports.items()},
            **{f"127.0.0.1:{port}": f"127.0.0.1:{own}" for port, own in ports.items()},
        }

    def environment(self, service: Composed) -> dict[str, str]:
        return {**os.environ, **{name: self._here(service, value) for name, value in service.environment.items()}}

    def words(self, service: Composed, words: list[str]) -> list[str]:
        """With this Python, whatever a shell would find."""
        found = [self._here(service, word) for word in words]
        if found[:2] == ["sh", "-c"]:
            return ["sh", "-c", found[2].replace("python ", f"{shlex.quote(sys.executable)} ")]
        return [sys.executable if word == "python" else word for word in found]

    def _here(self, service: Composed, text: str) -> str:
        for volume in service.said.get("volumes", []):
            name, _, place = volume.partition(":")
            directory = self._directory / name
            directory.mkdir(exist_ok=True)
            text = text.replace(place, str(directory))
        for name, place in self._places.items():
            text = text.replace(name, place)
        return text


@pytest.fixture
def around(tmp_path: Path, kafka: Kafka, redis_server: Redis, postgres_dsn: str) -> LocalHost:
    make_secrets(tmp_path / "secrets")
    settings = tmp_path / "secrets/service_layer.toml"
    settings.chmod(0o600)
    settings.write_text(f'database = "{postgres_dsn}"\n')
    # A topic of this test's own, which the first process makes.
    topic = f"kafka://{kafka.bootstrap}/compose.{tmp_path.name}"
    return LocalHost(
        tmp_path,
        {"kafka://kafka:9092/sandbox.events.v1": topic, "redis://redis:6379": f"redis://127.0.0.1:{redis_server.port}"},
    )


@pytest.fixture
def started(tmp_path: Path) -> Iterator[dict[str, ServerProcess]]:
    """Processes that a test starts; they are stopped in reverse order."""
    found: dict[str, ServerProcess] = {}
    yield found
    for process in reversed(found.values()):
        process.kill(signal.SIGKILL)


def in_order() -> list[Composed]:
    """Our services, each after those that it waits for."""
    left = {name: service for name, service in composed.services().items() if service.ours}
    found: list[Composed] = []
    while left:
        ready = [service for service in left.values() if not set(service.waits_for) & set(left)]
        assert ready, f"these wait for each other: {sorted(left)}"
        found += ready
        for service in ready:
            del left[service.name]
    return found


def test_what_the_file_starts_becomes_healthy_in_its_order_and_ends_in_order(
    around: LocalHost, started: dict[str, ServerProcess], tmp_path: Path
) -> None:
    jobs = set(composed.jobs())
    services = in_order()
    for service in services:
        command = around.words(service, service.said["command"])
        environment = around.environment(service)
        process = ServerProcess(Command(service.name, command, tmp_path / f"{service.name}.log", ROOT, environment))
        started[service.name] = process
        process.start()
        if service.name in jobs:
            process.wait_for_exit(START_SECONDS)
            continue
        check = around.words(service, service.health[1:])
        process.wait_until(lambda check=check: _passes(check), START_SECONDS, "it is healthy")  # type: ignore[misc]

    for port in METRICS:
        (address,) = around.words(services[0], [f"0.0.0.0:{port}"])
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=START_SECONDS) as answer:
            assert b"baton_" in answer.read(), "what the alarms are about"

    # A second start finds the database that the first one made.
    for service in services:
        if service.name in jobs:
            started[service.name].start()
            started[service.name].wait_for_exit(START_SECONDS)

    for service in reversed(services):
        if service.name not in jobs:
            started[service.name].stop(signal.SIGTERM, service.seconds("stop_grace_period"))
            assert started[service.name].exit_code == 0, started[service.name].log_tail()


def _passes(check: list[str]) -> bool:
    return subprocess.run(check, cwd=ROOT, capture_output=True, timeout=START_SECONDS).returncode == 0
