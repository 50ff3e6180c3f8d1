"""The commands, settings and health checks of docker-compose.yml, started in its order beside servers of its own, with
the certificates, passwords and tokens that `make up` makes.

A container's addresses and directories are replaced by ones of this machine; all else is as the file says.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shlex
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.compose.make_secrets import ACCOUNT, USER, make_secrets
from libs.eventlog.address import LogAddress, open_event_log
from libs.eventlog.port import LogUnavailable
from libs.eventlog.security import KafkaSecurity
from libs.proving.servers.kafka import Kafka
from libs.proving.servers.ports import free_port
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.process import Command, ServerProcess
from libs.proving.servers.redis import Redis
from libs.proving.servers.secure import Certificate
from tests import composed
from tests.composed import ROOT, Composed

START_SECONDS = 120.0
BETWEEN_OURS = ("simple-mcp:50052", "service-layer:50062", "router:7600", "router:7601")
METRICS = ("9464", "9465", "9466")
LISTENERS = ("50051", "50052", "50053", "50061", "50062", "50063", "7600", "7601", "7680", "7700", *METRICS)


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

    def address(self, service: Composed, address: str) -> str:
        """Where the listener is that the file has at this address."""
        return self._here(service, address)

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


class Broker:
    """The secure listener of Kafka in the file, for a broker of the tests."""

    def __init__(self, secrets: Path) -> None:
        self._secrets = secrets
        self.port = free_port()
        self.listeners = f",SASL_SSL://127.0.0.1:{self.port}"
        self.format_arguments: list[str] = []

    def properties(self, directory: Path) -> str:
        """The properties that the image makes from the environment."""
        said = composed.services()["kafka"].environment
        password = (self._secrets / said["KAFKA_SSL_KEYSTORE_CREDENTIALS"]).read_text()
        (line,) = [line for line in (self._secrets / "kafka_jaas.conf").read_text().splitlines() if "required" in line]
        lines = {
            "ssl.keystore.type": said["KAFKA_SSL_KEYSTORE_TYPE"],
            "ssl.keystore.location": self._secrets / said["KAFKA_SSL_KEYSTORE_FILENAME"],
            "ssl.keystore.password": password,
            "ssl.key.password": password,
            "sasl.enabled.mechanisms": said["KAFKA_SASL_ENABLED_MECHANISMS"],
            "listener.name.sasl_ssl.plain.sasl.jaas.config": line.strip(),
        }
        return "".join(f"{name}={value}\n" for name, value in lines.items())


@pytest.fixture
def around(request: pytest.FixtureRequest, tmp_path: Path, stack_directory: Path) -> Iterator[LocalHost]:
    if request.config.getoption("--no-servers"):
        pytest.skip("needs servers")
    secrets, directory = tmp_path / "secrets", stack_directory / "compose"
    make_secrets(secrets)
    directory.mkdir()
    # The user that PostgreSQL runs as enters it.
    directory.chmod(0o711)
    certificates = {
        name: Certificate(secrets / f"{name}.pem", secrets / f"{name}-key.pem", secrets / "ca.pem")
        for name in ("postgres", "redis")
    }
    listeners = Broker(secrets)
    kafka = Kafka(directory / "kafka", listeners)
    postgres = Postgres(directory / "postgres", certificate=certificates["postgres"])
    users = {USER: (secrets / "redis_password").read_text()}
    redis = Redis(directory / "redis", certificate=certificates["redis"], users=users)
    servers = (kafka, postgres, redis)
    try:
        with ThreadPoolExecutor(len(servers)) as executor:
            for starting in [executor.submit(server.start) for server in servers]:
                starting.result()
        postgres.require_tls(USER, (secrets / "postgres_password").read_text())
        postgres.create_database(USER)
        here = LocalHost(
            tmp_path,
            {
                "kafka:9092": f"127.0.0.1:{listeners.port}",
                "redis:6379": f"127.0.0.1:{redis.tls_port}",
                "postgres:5432": f"127.0.0.1:{postgres.port}",
            },
        )
        settings = secrets / "service_layer.toml"
        settings.chmod(0o600)
        settings.write_text(here.address(composed.services()["service-layer"], settings.read_text()))
        yield here
    finally:
        for server in servers:
            server.kill()


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

    trust = ssl.create_default_context(cafile=str(tmp_path / "secrets/ca.pem"))
    for port in METRICS:
        (address,) = around.words(services[0], [f"0.0.0.0:{port}"])
        with urllib.request.urlopen(f"https://{address}/metrics", timeout=START_SECONDS, context=trust) as answer:
            assert b"baton_" in answer.read(), "what the alarms are about"
    _call_as_the_file_says(around, tmp_path / "secrets")
    _use_another_mechanism(around, tmp_path / "secrets")

    # A second start finds the database that the first one made.
    for service in services:
        if service.name in jobs:
            started[service.name].start()
            started[service.name].wait_for_exit(START_SECONDS)

    for service in reversed(services):
        if service.name not in jobs:
            started[service.name].stop(signal.SIGTERM, service.seconds("stop_grace_period"))
            assert started[service.name].exit_code == 0, started[service.name].log_tail()


def _call_as_the_file_says(around: LocalHost, secrets: Path) -> None:
    """The client's call and the operator's command at the top of the file."""
    router = composed.services()["router"]
    trust = ssl.create_default_context(cafile=str(secrets / "ca.pem"))
    url = f"https://{around.address(router, '0.0.0.0:7680')}/v1/sandboxes"
    token = (secrets / "client_token").read_text()
    made = urllib.request.Request(
        f"{url}?sandboxId=one",
        json.dumps({"account": ACCOUNT, "spec": {"image": "image:1"}}).encode(),
        {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(made, timeout=START_SECONDS, context=trust) as answer:
        assert json.load(answer)["name"] == "sandboxes/one"
    listed = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(listed, timeout=START_SECONDS, context=trust) as answer:
        assert [one["name"] for one in json.load(answer)["sandboxes"]] == ["sandboxes/one"]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url, timeout=START_SECONDS, context=trust)
    baton = Path(sys.executable).with_name("baton")
    address = around.address(router, "127.0.0.1:7700")
    command: list[str] = [str(baton), "status", "--address", address, "-o", "json"]
    found = subprocess.run(command, env=around.environment(router), capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["stores"]


def _use_another_mechanism(around: LocalHost, secrets: Path) -> None:
    """The broker allows PLAIN only."""
    url = around.address(composed.services()["router"], "kafka://kafka:9092/sandbox.events.v1")
    security = KafkaSecurity("SASL_SSL", "SCRAM-SHA-256", USER, secrets / "kafka_password", secrets / "ca.pem")

    async def open_it() -> None:
        async with open_event_log(LogAddress(url, security=security)):
            raise AssertionError("it opened")

    with warnings.catch_warnings():
        # aiokafka leaves this connection to the broker, which closes it.
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises(LogUnavailable, match="does not allow this event_log_sasl_mechanism"):
            asyncio.run(open_it())
        gc.collect()


def _passes(check: list[str]) -> bool:
    return subprocess.run(check, cwd=ROOT, capture_output=True, timeout=START_SECONDS).returncode == 0
