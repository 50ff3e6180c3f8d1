"""docker-compose.yml and the image's recipe fit the programs and settings that they name, and each other."""

import re
import string
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from deploy.compose.make_secrets import make_secrets
from libs.process import ProcessSettings
from libs.proving.servers import postgres as servers_postgres
from libs.proving.servers.locate import KAFKA_DEPLOY
from libs.proving.servers.redis import Redis
from libs.rpc.auth import read_token
from libs.settings import load
from libs.store.connections import per_process
from libs.tls.hosts import is_loopback
from services.router.settings import RouterSettings
from services.service_layer.settings import ServiceLayerSettings
from services.simple_mcp.settings import SimpleMcpSettings
from tests import composed
from tests.composed import ROOT, Composed

SERVICES = composed.services()
OURS = [service for service in SERVICES.values() if service.ours]
PROGRAMS = [service for service in OURS if service.name not in set(composed.jobs())]
JOBS = [service for service in OURS if service.name in set(composed.jobs())]
BOUGHT = [service for service in SERVICES.values() if not service.ours]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "deploy/image/Dockerfile").read_text()
PINNED = re.compile(r"[a-z/]+:\d+\.\d+(\.\d+)?(-[a-z0-9.]+)*")
COMMAND_OPTIONS = {"BATON_TOKEN_FILE", "BATON_TLS_CA", "BATON_TLS_CERTIFICATE", "BATON_TLS_KEY"}
"""Variables that the command `baton` reads, in the router's container."""
KAFKA_FILES = ("KEYSTORE_FILENAME", "KEYSTORE_CREDENTIALS", "KEY_CREDENTIALS")
BROKER_OF_ITS_OWN = {
    "controller.quorum.voters",
    "inter.broker.listener.name",
    "listeners",
    "listener.security.protocol.map",
    "advertised.listeners",
    "log.dirs",
}
"""Settings for a broker's place and its own listeners; the tests' broker also has encrypted ones."""


def each(found: list[Composed]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("service", found, ids=[one.name for one in found])


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    made = make_secrets(tmp_path / "secrets")
    assert made
    return tmp_path / "secrets"


def loaded(service: Composed, secrets: Path, patch: pytest.MonkeyPatch) -> ProcessSettings:
    """The settings that the service starts with. A variable in its environment that is not a setting is refused."""
    for name, value in service.settings.items():
        patch.setenv(name, value.replace("/run/secrets", str(secrets)))
    return load(service.kind)


def addresses(settings: ProcessSettings) -> list[tuple[str, int]]:
    """Host and port of every other service that these settings name."""
    urls = [settings.event_log]
    if isinstance(settings, RouterSettings):
        urls += [f"grpc://{address}" for address in (settings.store_a, *settings.store_b.split(","))]
    elif isinstance(settings, ServiceLayerSettings):
        urls += [settings.database, settings.redis]
    if isinstance(settings, ServiceLayerSettings | SimpleMcpSettings):
        urls += [f"grpc://{settings.router}", f"grpc://{settings.router_internal}"]
    found = [urlsplit(url) for url in urls]
    return [(url.hostname or "", url.port or 0) for url in found]


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def listeners(service: Composed) -> dict[str, str]:
    """Addresses where Baton's program listens, by setting."""
    return {
        name: service.environment[f"{service.prefix}{name}".upper()]
        for name in ("public", "internal", "control", "http")
        if name in service.kind.model_fields
    }


def metrics(service: Composed) -> str:
    """Where one of our programs tells its metrics."""
    return service.environment[f"{service.prefix}metrics".upper()]


def listens(name: str) -> set[int]:
    """Ports at which that service can be reached from others."""
    service = SERVICES[name]
    if service.ours:
        return {port_of(address) for address in listeners(service).values() if not is_loopback(address)}
    if name == "kafka":
        advertised = service.environment["KAFKA_ADVERTISED_LISTENERS"].split(",")
        return {port_of(address) for address in advertised if "://kafka:" in address}
    return {"postgres": {5432}, "redis": {6379}}[name]


@each(OURS)
def test_what_a_container_starts_is_a_command_that_the_program_has(service: Composed) -> None:
    assert service.command[:2] == ["python", "-m"]
    command = [sys.executable, *service.command[1:], "--help"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr


def test_every_program_is_started_by_one_service_and_by_nothing_else() -> None:
    assert sorted(service.program for service in PROGRAMS) == sorted(composed.SETTINGS)


@each(OURS)
def test_the_environment_of_a_container_loads_as_its_programs_settings(
    service: Composed, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No process would read a name with another prefix; the command reads the others.
    others = {name for name in service.environment if not name.startswith(service.prefix)}
    assert others <= COMMAND_OPTIONS
    assert loaded(service, secrets, monkeypatch).log_format == "json"


@each(PROGRAMS)
def test_an_address_in_the_settings_is_another_services_name_and_port(
    service: Composed, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = loaded(service, secrets, monkeypatch)
    for host, port in addresses(settings):
        assert host in SERVICES
        assert port in listens(host), f"{service.name} calls {host}:{port}"
        assert set(service.said["networks"]) & set(SERVICES[host].said["networks"])
    if isinstance(settings, RouterSettings):
        assert settings.store_a == f"simple-mcp:{port_of(listeners(SERVICES['simple-mcp'])['internal'])}"
        assert settings.store_b == f"service-layer:{port_of(listeners(SERVICES['service-layer'])['internal'])}"


@each(PROGRAMS)
def test_what_a_program_calls_has_started_before_unless_it_waits_for_the_program(
    service: Composed, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {host for host, _ in addresses(loaded(service, secrets, monkeypatch))}
    assert before - {"router"} <= set(service.waits_for)


@each(PROGRAMS)
def test_a_health_check_asks_every_listener_of_its_program(service: Composed) -> None:
    assert service.health[:4] == ["CMD", "python", "-m", "libs.rpc.health"]
    asked = [word for word in service.health[4:] if not word.startswith("--")]
    assert [port_of(address) for address in asked] == [port_of(address) for address in listeners(service).values()]
    assert all(is_loopback(address.removeprefix("http://")) for address in asked)
    assert [address.startswith("http://") for address in asked] == [name == "http" for name in listeners(service)]


@each(list(SERVICES.values()))
def test_a_service_is_watched_by_a_health_check_or_is_a_job_that_others_wait_for(service: Composed) -> None:
    if service in JOBS:
        assert service.said["healthcheck"] == {"disable": True}
        assert service.said["restart"] == "no"
    else:
        assert service.health
        assert service.said["restart"] == "unless-stopped"
    for name, condition in service.waits_for.items():
        expected = "service_completed_successfully" if SERVICES[name] in JOBS else "service_healthy"
        assert condition == expected


@each(PROGRAMS)
def test_a_listener_that_others_reach_has_a_token(
    service: Composed, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = loaded(service, secrets, monkeypatch)
    assert isinstance(settings, RouterSettings | SimpleMcpSettings | ServiceLayerSettings)
    assert settings.token_file == secrets / "token"
    assert read_token(settings.token_file)
    if isinstance(settings, RouterSettings):
        assert is_loopback(settings.control)
        assert settings.control_auth == "tokens"


@each(PROGRAMS)
def test_every_leg_is_encrypted_and_every_caller_is_known(
    service: Composed, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = loaded(service, secrets, monkeypatch)
    assert isinstance(settings, RouterSettings | SimpleMcpSettings | ServiceLayerSettings)
    ca, own = secrets / "ca.pem", secrets / f"{service.name}.pem"
    assert (settings.tls_certificate, settings.tls_ca, settings.tls_client_ca) == (own, ca, ca)
    assert (settings.public_auth, settings.public_auth_file) == ("tokens", secrets / "clients.toml")
    assert settings.event_log_security == "SASL_SSL"
    assert settings.event_keys == secrets / "event_keys.toml"
    if isinstance(settings, ServiceLayerSettings):
        assert "sslmode=verify-full" in settings.database
        assert settings.redis.startswith("rediss://")
    if not isinstance(settings, RouterSettings):
        assert settings.event_auth == "require"


@each(list(SERVICES.values()))
def test_a_secret_that_a_container_names_is_mounted_there_and_no_other_is(service: Composed) -> None:
    text = yaml.safe_dump({name: value for name, value in service.said.items() if name not in ("secrets", "configs")})
    named = set(re.findall(r"(?:/run/secrets|/etc/kafka/secrets)/[\w.-]+", text))
    if service.name == "kafka":
        named |= {f"/etc/kafka/secrets/{service.environment[f'KAFKA_SSL_{name}']}" for name in KAFKA_FILES}
    # By the files of settings, which are mounted too.
    if "/run/secrets/service_layer.toml" in named:
        named.add("/run/secrets/ca.pem")
    assert named == set(service.mounted.values())
    for file in service.mounted:
        # The key of one service is in no other container.
        own = service.name.removesuffix("-migrate").removesuffix("-init")
        assert not file.endswith("-key.pem") or file == f"{own}-key.pem"


def test_no_server_lets_anybody_in_from_the_network() -> None:
    kafka = SERVICES["kafka"].environment
    protocols = dict(pair.split(":") for pair in kafka["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(","))
    for listener in kafka["KAFKA_LISTENERS"].split(","):
        name, _, place = listener.partition("://")
        assert protocols[name] == "SASL_SSL" or place.startswith("localhost:")
    assert SERVICES["redis"].command[1:5] == ["--port", "0", "--tls-port", "6379"]
    rules = [line.split() for line in (ROOT / "deploy/compose/pg_hba.conf").read_text().splitlines() if line[0] != "#"]
    assert [(rule[0], rule[-1]) for rule in rules] == [("local", "scram-sha-256"), ("hostssl", "scram-sha-256")]
    assert "-chba_file=/etc/postgresql/pg_hba.conf" in SERVICES["postgres"].command


def test_metrics_are_told_at_ports_of_their_own_that_the_top_of_the_file_names() -> None:
    told = {service.name: metrics(service) for service in PROGRAMS}
    assert len({port_of(address) for address in told.values()}) == len(told)
    head = (ROOT / "docker-compose.yml").read_text().partition("\nname:")[0]
    for name, address in told.items():
        assert not is_loopback(address)
        assert "inside" in SERVICES[name].said["networks"]
        assert f"{name}:{port_of(address)}" in head


def test_only_what_clients_call_is_published_and_on_this_machine_only() -> None:
    published = {service.name: service.said["ports"] for service in SERVICES.values() if "ports" in service.said}
    assert set(published) == {"router"}
    for name, ports in published.items():
        found = [port_of(listeners(SERVICES[name])[door]) for door in ("public", "http")]
        assert ports == [f"127.0.0.1:{port}:{port}" for port in found]
    # So any number of them can run on one host.
    assert "container_name" not in SERVICES["service-layer"].said


@each(list(SERVICES.values()))
def test_an_image_has_a_tag_that_names_a_version(service: Composed) -> None:
    assert PINNED.fullmatch(service.said["image"])


@each(list(SERVICES.values()))
def test_a_container_can_do_no_more_than_it_needs(service: Composed) -> None:
    assert service.said["cap_drop"] == ["ALL"]
    assert service.said["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "mem_limit", "pids_limit"} <= set(service.said)
    assert not {"privileged", "cap_add", "network_mode", "pid"} & set(service.said)


@each(OURS)
def test_our_containers_are_not_root_and_write_to_their_volume_only(service: Composed) -> None:
    assert service.said["image"] == f"baton:{PROJECT['version']}"
    assert service.said["read_only"] is True
    user = re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)
    assert user == [service.said["user"]] == ["10001:10001"]
    places = [volume.partition(":")[2] for volume in service.said.get("volumes", [])]
    assert set(places) <= {"/var/lib/baton"}
    # The directory in the image belongs to the user, and so does a volume that is put there first.
    assert "install -d -o 10001 -g 10001 -m 0750 /var/lib/baton" in DOCKERFILE


@each(PROGRAMS)
def test_a_container_has_more_time_to_end_than_its_program_takes(
    service: Composed, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = loaded(service, secrets, monkeypatch)
    assert isinstance(settings, RouterSettings | SimpleMcpSettings | ServiceLayerSettings)
    assert service.seconds("stop_grace_period") >= settings.drain_seconds + 5


def test_what_is_kept_is_in_named_volumes_and_secrets_that_exist() -> None:
    said = composed.read()
    used = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.said.get("volumes", [])}
    assert used == set(said["volumes"])
    assert {secret for service in SERVICES.values() for secret in service.mounted} == set(said["secrets"])
    # One volume of one service: no other program's file is in reach.
    assert SERVICES["simple-mcp"].said["volumes"] == SERVICES["simple-mcp-init"].said["volumes"]
    assert SERVICES["router"].said["volumes"] != SERVICES["simple-mcp"].said["volumes"]


def test_making_secrets_again_leaves_them_as_they_are(tmp_path: Path) -> None:
    made = make_secrets(tmp_path / "secrets")
    assert {f"deploy/compose/secrets/{file.name}" for file in made} == {
        *(secret["file"] for secret in composed.read()["secrets"].values()),
        # For people and for the next `make up`.
        *(f"deploy/compose/secrets/{name}" for name in ("ca-key.pem", "client_token", "kafka.pem", "kafka-key.pem")),
    }
    before = {file: file.read_bytes() for file in made}
    assert make_secrets(tmp_path / "secrets") == []
    assert before == {file: file.read_bytes() for file in made}
    # Readable by another user within the container; on the host, the folder is closed to others.
    modes = {file.name: file.stat().st_mode & 0o777 for file in made}
    assert modes.pop("ca-key.pem") == 0o600
    assert all(mode & 0o444 == 0o444 and not mode & 0o022 for mode in modes.values())
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700


def test_secrets_are_neither_committed_nor_in_the_image() -> None:
    assert "deploy/compose/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert not any(line.startswith("!deploy") for line in lines)


def test_the_database_password_is_the_one_that_the_server_is_made_with(secrets: Path) -> None:
    database = urlsplit(tomllib.loads((secrets / "service_layer.toml").read_text())["database"])
    server = SERVICES["postgres"].environment
    assert database.password == (secrets / "postgres_password").read_text()
    assert (database.username, database.path) == (server["POSTGRES_USER"], f"/{server['POSTGRES_DB']}")


@each(PROGRAMS)
def test_the_topic_can_be_made_on_one_broker(service: Composed, secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = loaded(service, secrets, monkeypatch).log_address
    assert (address.create, address.replication_factor, address.min_insync_replicas) == (True, 1, 1)
    assert address.url == composed.read()["x-event-log"]


def test_the_control_store_is_not_on_the_new_services_server(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    router = loaded(SERVICES["router"], secrets, monkeypatch)
    assert isinstance(router, RouterSettings)
    assert router.control_store.startswith("sqlite:////var/lib/baton/")


def test_kafka_is_set_as_the_broker_of_the_tests_is() -> None:
    said = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in SERVICES["kafka"].environment.items()
        if not name.startswith(("KAFKA_HEAP_OPTS", "KAFKA_OPTS", "KAFKA_SSL_", "KAFKA_SASL_"))
    }
    template = string.Template((KAFKA_DEPLOY / "server.properties.template").read_text())
    lines = template.substitute(port=1, controller_port=2, data="3", more_listeners="").splitlines()
    tested = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert {name: said[name] for name in said if name not in BROKER_OF_ITS_OWN} == {
        name: tested.get(name) for name in said if name not in BROKER_OF_ITS_OWN
    }
    assert {"auto.create.topics.enable", "log.cleanup.policy", "min.insync.replicas"} < set(said)


def test_postgres_is_set_as_the_server_of_the_tests_is() -> None:
    command = SERVICES["postgres"].command
    said = dict(option.removeprefix("-c").split("=", 1) for option in command[1:])
    tested = servers_postgres._SETTINGS
    names = {"synchronous_commit", "fsync", "full_page_writes", "timezone"}
    assert {name: said[name] for name in names} == {name: tested[name] for name in names}
    assert "--locale=C" in SERVICES["postgres"].environment["POSTGRES_INITDB_ARGS"]


def test_postgres_has_connections_for_several_processes_of_the_new_service(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = loaded(SERVICES["service-layer"], secrets, monkeypatch)
    assert isinstance(settings, ServiceLayerSettings)
    (option,) = [word for word in SERVICES["postgres"].command if word.startswith("-cmax_connections=")]
    pools = per_process(settings.request_pool, settings.apply_pool, settings.control_pool)
    assert 5 * pools <= int(option.partition("=")[2])


def test_redis_is_set_as_the_server_of_the_tests_is(tmp_path: Path) -> None:
    argv = [str(word) for word in Redis(tmp_path).process.command.argv]
    said = SERVICES["redis"].command
    for name in ("--save", "--appendonly", "--maxmemory", "--maxmemory-policy"):
        assert said[said.index(name) + 1] == argv[argv.index(name) + 1]


def test_what_the_image_is_made_from_exists_and_is_sent_to_the_builder() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert sources == sent
    assert all((ROOT / source).exists() for source in sources)
    for service in OURS:
        build = service.said["build"]
        assert (ROOT / build["context"] / build["dockerfile"]).is_file()


def test_the_image_has_a_python_that_the_project_runs_on() -> None:
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) == ["${BASE}", "${BASE}"]
    (base,) = re.findall(r"^ARG BASE=(\S+)", DOCKERFILE, re.MULTILINE)
    assert PINNED.fullmatch(base)
    version = base.partition(":")[2].partition("-")[0]
    assert Version(version) in SpecifierSet(PROJECT["requires-python"])


def test_the_image_says_what_it_is() -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', DOCKERFILE.rpartition("\nFROM ")[2]))
    assert labels.pop("revision") == "${REVISION}"
    assert labels == {
        "title": PROJECT["name"],
        "description": PROJECT["description"],
        "version": PROJECT["version"],
        "licenses": PROJECT["license"],
    }


def test_the_image_is_built_with_pinned_packages_only() -> None:
    installs = [line for line in DOCKERFILE.replace("\\\n", " ").splitlines() if "pip install" in line]
    steps = [step for line in installs for step in line.split("&&") if "pip install" in step]
    assert steps
    assert all("--require-hashes" in step or "--no-deps --no-index" in step for step in steps)
    pin = re.compile(r"^setuptools==\S+", re.MULTILINE)
    found = {name: pin.findall((ROOT / f"requirements/{name}.txt").read_text()) for name in ("build", "dev")}
    assert found["build"] == found["dev"] != []


def test_the_commands_that_the_file_tells_of_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "\nup: env ## " in makefile
    assert "\ndown: ## " in makefile
    assert "deploy.compose.make_secrets" in makefile
    assert yaml.safe_load((ROOT / "docker-compose.yml").read_text())["name"] == PROJECT["name"]
