"""The commands, environment and probes of the Kubernetes manifests, started in no order against servers of its own."""

from __future__ import annotations

import base64
import hashlib
import json
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from deploy.compose.make_secrets import ACCOUNT, USER, token_entry
from libs.proving.servers.errors import ServerMissing
from libs.proving.servers.kafka import Kafka
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.redis import Redis
from libs.proving.servers.secure import Certificate, SecureListeners
from libs.proving.servers.stack import server_directory
from libs.tls.making import Authority
from tests import manifests
from tests.manifests import Manifests, Workload
from tests.node import Node
from tests.waiting import eventually

PASSWORD = "of-all-servers"
TOPIC = "sandbox.events.v1"
NAMES = {
    "simple-mcp": ("simple-mcp", "baton-metrics"),
    "service-layer": ("service-layer", "baton-metrics"),
    "router": ("router", "router.baton", "router.baton.svc", "router-internal", "baton-metrics"),
}
"""DNS names of certificates, as docs/kubernetes.md lists them; here the address too."""
SECRETS, TLS = "/run/baton/secrets", "/run/baton/tls"
SECONDS = 60


class Servers:
    """Kafka, PostgreSQL and Redis, with and without TLS."""

    def __init__(self, directory: Path, authority: Authority) -> None:
        pair = authority.issue("server", ("127.0.0.1",))
        certificate = Certificate(pair.certificate, pair.key, authority.file)
        self.listeners = SecureListeners(certificate, {USER: PASSWORD})
        self.kafka = Kafka(directory / "kafka", self.listeners)
        self.postgres = Postgres(directory / "postgres", certificate=certificate)
        self.redis = Redis(directory / "redis", certificate=certificate, users={USER: PASSWORD})
        self.all = (self.kafka, self.postgres, self.redis)

    def start(self) -> None:
        with ThreadPoolExecutor(len(self.all)) as executor:
            for starting in [executor.submit(server.start) for server in self.all]:
                starting.result()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "authority").mkdir()
    return Authority(tmp_path / "authority")


@pytest.fixture
def servers(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Servers]:
    if request.config.getoption("--no-servers"):
        pytest.skip("needs servers")
    with server_directory() as directory:
        found = Servers(directory, authority)
        try:
            found.start()
            yield found
        finally:
            for server in found.all:
                server.kill()


@pytest.fixture
def rendered(tmp_path: Path) -> dict[str, Manifests]:
    try:
        return {name: Manifests(manifests.render(name, tmp_path)) for name in manifests.OVERLAYS}
    except ServerMissing as error:
        pytest.skip(str(error))


async def test_both_overlays_start_in_no_order_serve_a_client_and_end_in_time(
    servers: Servers, rendered: dict[str, Manifests], authority: Authority, tmp_path: Path
) -> None:
    trial = trial_node(rendered["trial"], servers, tmp_path / "trial")
    try:
        start(trial)
        tokens = _contents(rendered["trial"], "client_token", tmp_path)
        create(trial, tokens["client_token"], None)
        assert status(trial)["stores"].keys() == {"A", "B"}
        end(trial)
    finally:
        trial.kill()

    await servers.kafka.create_topic(TOPIC, 16, {"cleanup.policy": "delete"})
    issuer = ec.generate_private_key(ec.SECP256R1())
    production = production_node(rendered["production"], servers, authority, issuer, tmp_path / "production")
    trust = ssl.create_default_context(cafile=str(authority.file))
    try:
        start(production)
        create(production, client_token(rendered["production"], issuer), trust)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            create(production, "of-a-stranger", trust)
        read_metrics(production, trust)
        assert status(production)["stores"]["B"]["serving"]
        await rotate(production)
        end(production)
    finally:
        production.kill()


def start(node: Node) -> None:
    """All at once, as a cluster does."""
    with ThreadPoolExecutor(3) as executor:
        for starting in [executor.submit(node.start, program) for program in node.manifests.programs]:
            starting.result()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        for program in node.manifests.programs:
            node.wait_for(program, probe)


def end(node: Node) -> None:
    """End it by the signal and within the time of the manifests; the router's sleep before is for other nodes."""
    for program in node.manifests.programs:
        process = node.running[program.name]
        process.stop(signal.SIGTERM, program.spec["terminationGracePeriodSeconds"])
        assert process.exit_code == 0, process.log_tail()


def create(node: Node, token: str, trust: ssl.SSLContext | None) -> None:
    scheme = "https" if trust else "http"
    request = urllib.request.Request(
        f"{scheme}://{node.address(7680)}/v1/sandboxes?sandboxId=one",
        json.dumps({"account": ACCOUNT, "spec": {"image": "image:1"}}).encode(),
        {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=SECONDS, context=trust) as answer:
        assert json.load(answer)["name"] == "sandboxes/one"


def read_metrics(node: Node, trust: ssl.SSLContext) -> None:
    for program in node.manifests.programs:
        url = f"https://{node.address(program.main.ports['metrics'])}/metrics"
        with urllib.request.urlopen(url, timeout=SECONDS, context=trust) as answer:
            assert b"baton_" in answer.read()


def status(node: Node, *options: str) -> Any:
    """The output of `kubectl exec deploy/router -- baton status`."""
    router = node.manifests.workloads["router"]
    baton = str(Path(sys.executable).with_name("baton"))
    command = [baton, "status", "--address", node.address(7700), "-o", "json", *options]
    done = subprocess.run(
        command, env=node.environment(router.main), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    return json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr}


async def rotate(node: Node) -> None:
    """A replaced secret is in force without a restart."""
    router = node.manifests.workloads["router"]
    folder = node.folder(router, SECRETS)
    files = {file.name: file.read_bytes() for file in (folder / "..data").iterdir()}
    files["operators.toml"] = token_entry("another", "the-token-of-another", 'roles = ["viewer"]').encode()
    files["operator_token"] = b"the-token-of-another"
    old = folder / "..v0" / "operator_token"
    node.mount(router, SECRETS, files)
    await eventually(lambda: "stores" in status(node), timeout_seconds=SECONDS, what="the new token")
    assert "refuses your token" in str(status(node, "--token-file", str(old)))


def trial_node(overlay: Manifests, servers: Servers, directory: Path) -> Node:
    servers.postgres.execute(f"CREATE USER {USER} SUPERUSER PASSWORD '{PASSWORD}'")
    for name in (USER, "control"):
        servers.postgres.create_database(name)
    node = Node(
        overlay,
        directory,
        {
            f"kafka:9092/{TOPIC}": f"{servers.kafka.bootstrap}/trial",
            "redis:6379": f"127.0.0.1:{servers.redis.port}",
            f"control-postgres:5432/{USER}": f"127.0.0.1:{servers.postgres.port}/control",
            "postgres:5432": f"127.0.0.1:{servers.postgres.port}",
        },
    )
    for program in overlay.programs:
        mount_all(node, program, {SECRETS: _secret(overlay, program.main.secrets[SECRETS])})
    return node


def _secret(overlay: Manifests, name: str) -> dict[str, bytes]:
    data = overlay.named("Secret", name)["data"]
    found = {key: base64.b64decode(text) for key, text in data.items()}
    return found | ({"redis_password": PASSWORD.encode()} if "redis_password" in found else {})


def _contents(overlay: Manifests, name: str, directory: Path) -> dict[str, str]:
    """A file of the trial's credentials that no pod gets."""
    return {name: (directory / "kubernetes" / "overlays" / "trial" / "secrets" / name).read_text()}


def production_node(
    overlay: Manifests, servers: Servers, authority: Authority, issuer: ec.EllipticCurvePrivateKey, directory: Path
) -> Node:
    user = "production"
    servers.postgres.require_tls(user, PASSWORD)
    for name in ("production_b", "production_control"):
        servers.postgres.create_database(name)
    router = overlay.workloads["router"].main.environment
    directory.mkdir()
    keys = {**ECAlgorithm.to_jwk(issuer.public_key(), as_dict=True), "kid": "1", "alg": "ES256", "use": "sig"}
    (directory / "jwks.json").write_text(json.dumps({"keys": [keys]}))
    node = Node(
        overlay,
        directory,
        {
            "kafka.example.com:9093": f"127.0.0.1:{servers.listeners.sasl_port}",
            "redis.example.com:6379": f"127.0.0.1:{servers.redis.tls_port}",
            router["BATON_ROUTER_JWT_KEYS"]: str(directory / "jwks.json"),
        },
    )
    place = f"{user}:{PASSWORD}@127.0.0.1:{servers.postgres.port}"
    verified = f"sslmode=verify-full&sslrootcert={SECRETS}/servers-ca.crt"
    files = {
        "token": "a-token-that-all-programs-share",
        "event_keys.toml": f'sign = "1"\n[keys]\n1 = "{base64.b64encode(bytes(32)).decode()}"\n',
        "kafka_password": PASSWORD,
        "redis_password": PASSWORD,
        "service_layer.toml": f'database = "postgresql://{place}/production_b?{verified}"\n',
        "router.toml": f'control_store = "postgresql://{place}/production_control?{verified}"\n',
        "operators.toml": token_entry("operator", "the-token-of-an-operator", 'roles = ["admin"]'),
        "operator_token": "the-token-of-an-operator",
        "servers-ca.crt": authority.file.read_text(),
    }
    for program in overlay.programs:
        text = str(program.spec) + str(program.main.environment)
        pair = authority.issue(program.name, (*NAMES[program.name], "127.0.0.1"))
        tls = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authority.file}
        mount_all(
            node,
            program,
            {
                SECRETS: {name: content.encode() for name, content in files.items() if f"{SECRETS}/{name}" in text},
                TLS: {name: file.read_bytes() for name, file in tls.items()},
            },
        )
    return node


def mount_all(node: Node, program: Workload, secrets: Mapping[str, Mapping[str, bytes]]) -> None:
    assert set(secrets) == set(program.main.secrets)
    for mount, files in secrets.items():
        node.mount(program, mount, files)


def client_token(overlay: Manifests, issuer: ec.EllipticCurvePrivateKey) -> str:
    said = overlay.workloads["router"].main.environment
    now = int(time.time())
    claims = {
        "iss": said["BATON_ROUTER_JWT_ISSUER"],
        "aud": said["BATON_ROUTER_JWT_AUDIENCE"],
        "sub": hashlib.sha256(b"client").hexdigest(),
        "accounts": [ACCOUNT],
        "iat": now,
        "exp": now + 3600,
    }
    return jwt.encode(claims, issuer, "ES256", {"kid": "1"})
