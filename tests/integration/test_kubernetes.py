"""The Kubernetes manifests as kustomize renders them fit the programs and settings that they name, and each other."""

from __future__ import annotations

import base64
import copy
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from libs.process import ProcessSettings
from libs.proving.servers import locate
from libs.proving.servers.errors import ServerMissing
from libs.settings import load
from libs.tls.hosts import is_loopback
from services.router.settings import RouterSettings
from services.service_layer.settings import ServiceLayerSettings
from services.simple_mcp.settings import SimpleMcpSettings
from tests import composed, manifests
from tests.composed import ROOT
from tests.manifests import NAME, OVERLAYS, SECRETS, Manifests, Workload

PROGRAMS = ("simple-mcp", "service-layer", "router")
COMMAND_OPTIONS = {
    "BATON_TOKEN_FILE",
    "BATON_TLS_CA",
    "BATON_TLS_CERTIFICATE",
    "BATON_TLS_KEY",
    "BATON_TLS_SERVER_NAME",
}
"""Variables that the command `baton` reads, in the router's container."""
DOCUMENT = (ROOT / "docs" / "kubernetes.md").read_text()
OUTSIDE = {"kafka.example.com": 9093, "redis.example.com": 6379, "idp.example.com": 443}
"""Servers that the overlay `production` names as examples."""
METRICS_PORT = "metrics"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifests]:
    directory = tmp_path_factory.mktemp("kubernetes")
    try:
        return {name: Manifests(manifests.render(name, directory)) for name in OVERLAYS}
    except ServerMissing as error:
        pytest.skip(str(error))


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest, rendered: dict[str, Manifests]) -> Manifests:
    return rendered[request.param]


def loaded(program: Workload, patch: pytest.MonkeyPatch) -> ProcessSettings:
    """The settings that the program starts with, among all variables that Kubernetes could add."""
    for name, value in {**program.manifests.service_links(), **program.settings}.items():
        patch.setenv(name, value)
    # The file of settings is a secret; `test_kubernetes_start` starts the programs with one.
    patch.delenv(f"{program.prefix}CONFIG", raising=False)
    if program.kind is RouterSettings:
        patch.setenv("BATON_ROUTER_CONTROL_STORE", "memory:")
    if program.kind is ServiceLayerSettings:
        patch.setenv("SERVICE_LAYER_DATABASE", "postgresql://baton@postgres/baton")
    return load(program.kind)


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def listeners(settings: ProcessSettings) -> dict[str, str]:
    names = ("public", "internal", "control", "http", METRICS_PORT)
    found = {name: str(getattr(settings, name, "")) for name in names}
    return {name: address for name, address in found.items() if address}


def called(settings: ProcessSettings) -> Iterator[tuple[str, int]]:
    """Host and port of every other program that the settings name."""
    addresses: list[str] = []
    if isinstance(settings, RouterSettings):
        addresses = [settings.store_a, settings.store_b]
    elif isinstance(settings, SimpleMcpSettings | ServiceLayerSettings):
        addresses = [settings.router, settings.router_internal, settings.other]
    for address in filter(None, addresses):
        host, _, port = address.rpartition(":")
        yield host, int(port)


def servers(program: Workload, settings: ProcessSettings) -> Iterator[tuple[str, int]]:
    """Host and port of the servers that the program uses."""
    yield from _places(settings.event_log)
    if isinstance(settings, ServiceLayerSettings):
        yield from _places(settings.redis)
    for _, secret in program.main.secrets.items():
        for document in program.manifests.of("Secret"):
            if document["metadata"]["name"] == secret:
                for text in document["data"].values():
                    yield from _places(_decoded(text))


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()


def _places(text: str) -> Iterator[tuple[str, int]]:
    for host, port in re.findall(r"\w+://(?:[^@/\s]*@)?([a-z0-9.-]+):(\d+)", text):
        yield host, int(port)


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_manifests_are_valid_for_the_oldest_kubernetes(
    name: str, rendered: dict[str, Manifests], tmp_path: Path
) -> None:
    assert_valid(rendered[name].documents, tmp_path)


def test_a_field_that_kubernetes_does_not_know_is_refused(rendered: dict[str, Manifests], tmp_path: Path) -> None:
    document = copy.deepcopy(rendered["trial"].named("Deployment", "router"))
    document["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(AssertionError, match="enableServiceLink"):
        assert_valid([document], tmp_path)


def assert_valid(documents: list[manifests.Document], directory: Path) -> None:
    try:
        kubeconform = locate.kubeconform()
    except ServerMissing as error:
        pytest.skip(str(error))
    for name, schema in manifests.schemas().items():
        (directory / f"{name}.json").write_text(json.dumps(schema))
    file = directory / "rendered.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    place = f"{directory}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json"
    command = [str(kubeconform), "-strict", "-n", "2", "-schema-location", place, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_program_runs_once_and_in_its_own_pods(overlay: Manifests) -> None:
    assert sorted(program.main.command[2] for program in overlay.programs) == sorted(composed.SETTINGS)
    assert {program.name for program in overlay.programs} == set(PROGRAMS)
    for program in overlay.programs:
        for container in program.containers:
            assert container.said["image"] == program.main.said["image"]
            words = (
                container.command
                if container.command[0] == "python"
                else container.command[2].split("exec ")[1].split()
            )
            assert words[:2] == ["python", "-m"]


def test_the_environment_of_a_container_loads_as_its_programs_settings(
    overlay: Manifests, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in overlay.programs:
        others = {name for name in program.main.environment if not name.startswith(program.prefix)}
        assert others <= COMMAND_OPTIONS
        with monkeypatch.context() as patch:
            assert loaded(program, patch).log_format == "json"


def test_a_service_leads_to_ports_at_which_its_programs_listen(
    overlay: Manifests, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, service in overlay.services.items():
        workload = overlay.behind(name)
        if not workload.ours:
            assert {port["port"] for port in service["ports"]} == set(workload.main.ports.values())
            continue
        with monkeypatch.context() as patch:
            found = listeners(loaded(workload, patch))
        open_ports = {port_of(address) for address in found.values() if not is_loopback(address)}
        assert set(workload.main.ports.values()) == open_ports
        for port in service["ports"]:
            assert workload.main.ports[port["targetPort"]] == port["port"]
    for name in ("simple-mcp", "service-layer"):
        # A store that is not ready is recovered by calls at its internal listener.
        assert overlay.services[name]["publishNotReadyAddresses"] is True
        assert overlay.services[name]["clusterIP"] == "None"


def test_only_calls_that_the_settings_name_are_allowed(overlay: Manifests, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {("clients", "router", 7600), ("clients", "router", 7680)}
    for program in overlay.programs:
        with monkeypatch.context() as patch:
            settings = loaded(program, patch)
        for host, port in called(settings):
            assert port in {one["port"] for one in overlay.services[host]["ports"]}
            wanted.add((program.name, overlay.behind(host).name, port))
        for host, port in servers(program, settings):
            if host in OUTSIDE:
                assert OUTSIDE[host] == port
            else:
                wanted.add((program.name, overlay.behind(host).name, port))
    scraped = {(METRICS_PORT, name, overlay.workloads[name].main.ports[METRICS_PORT]) for name in PROGRAMS}
    ingress = set(edges(overlay, "Ingress"))
    assert ingress - scraped == wanted
    assert ingress & scraped in (set(), scraped)
    assert bool(ingress & scraped) is bool(overlay.of("ServiceMonitor"))
    inside = {
        (source, target, port) for source, target, port in edges(overlay, "Egress") if target in overlay.workloads
    }
    assert inside == {edge for edge in wanted if edge[0] != "clients"}
    everything = overlay.named("NetworkPolicy", "nobody")["spec"]
    assert everything == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def edges(overlay: Manifests, direction: str) -> Iterator[tuple[str, str, int]]:
    """From, to and port of each connection that a policy allows."""
    for policy in overlay.of("NetworkPolicy"):
        spec = policy["spec"]
        for rule in spec.get(direction.lower(), []):
            own = selected(overlay, spec["podSelector"])
            for peer in rule.get("from" if direction == "Ingress" else "to", [{}]):
                others = peers(overlay, peer)
                for one in own:
                    for other in others:
                        for port in rule["ports"]:
                            source, target = (other, one) if direction == "Ingress" else (one, other)
                            yield source, target, number_of(overlay, target, port["port"])


def number_of(overlay: Manifests, workload: str, port: int | str) -> int:
    return overlay.workloads[workload].main.ports[port] if isinstance(port, str) else port


def selected(overlay: Manifests, selector: manifests.Document) -> list[str]:
    expected = selector.get("matchLabels", {}).items()
    names = [set(one["values"]) for one in selector.get("matchExpressions", []) if one["key"] == NAME]
    return [
        workload.name
        for workload in overlay.workloads.values()
        if expected <= workload.labels.items() and all(workload.labels[NAME] in some for some in names)
    ]


def peers(overlay: Manifests, peer: manifests.Document) -> list[str]:
    if not peer:
        return ["outside"]
    if "podSelector" in peer:
        assert "namespaceSelector" not in peer
        return selected(overlay, peer["podSelector"])
    (label,) = peer["namespaceSelector"]["matchLabels"].items()
    return {
        ("baton/clients", "true"): ["clients"],
        ("kubernetes.io/metadata.name", "monitoring"): [METRICS_PORT],
        ("kubernetes.io/metadata.name", "kube-system"): ["dns"],
    }[label]


def test_a_pod_has_more_time_to_end_than_its_program_takes(overlay: Manifests, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in overlay.programs:
        with monkeypatch.context() as patch:
            settings = loaded(program, patch)
        assert isinstance(settings, RouterSettings | SimpleMcpSettings | ServiceLayerSettings)
        asleep = program.main.said.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        # Behind an address that all nodes balance, a pod gets connections for a moment after it began to end.
        behind = [spec for name, spec in overlay.services.items() if overlay.behind(name) is program]
        assert bool(asleep) is any(spec.get("clusterIP") != "None" for spec in behind)
        assert program.spec["terminationGracePeriodSeconds"] >= asleep + settings.drain_seconds + 5


def test_a_program_is_ready_when_its_listeners_are(overlay: Manifests, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in overlay.programs:
        with monkeypatch.context() as patch:
            settings = loaded(program, patch)
        found = listeners(settings)
        probe = program.main.said["readinessProbe"]
        if settings.tls_certificate is None:
            assert probe["grpc"] == {"port": port_of(found["public"])}
        else:
            # The kubelet's own gRPC probe speaks no TLS.
            command = probe["exec"]["command"]
            assert command[:3] == ["python", "-m", "libs.rpc.health"]
            asked = [word for word in command[3:] if not word.startswith("--")]
            assert [port_of(one) for one in asked] == [
                port_of(address) for name, address in found.items() if name != METRICS_PORT
            ]
            assert "grpc" not in probe
        for name in ("startupProbe", "livenessProbe"):
            asked_of = program.main.said[name]["httpGet"]
            assert program.main.ports[asked_of["port"]] == port_of(found["http"])
            assert asked_of.get("scheme", "HTTP") == ("HTTPS" if settings.tls_certificate else "HTTP")


def test_a_program_survives_the_loss_of_a_node(overlay: Manifests) -> None:
    old = overlay.named("StatefulSet", "simple-mcp")["spec"]
    assert old["replicas"] == 1
    assert [claim["metadata"]["name"] for claim in old["volumeClaimTemplates"]] == ["data"]
    budgets = {one["spec"]["selector"]["matchLabels"][NAME]: one["spec"] for one in overlay.of("PodDisruptionBudget")}
    assert set(budgets) == {"router", "service-layer"}
    for name, budget in budgets.items():
        said = overlay.named("Deployment", name)["spec"]
        assert said["replicas"] > budget["maxUnavailable"] == 1
        assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        keys = [one["topologyKey"] for one in said["template"]["spec"]["topologySpreadConstraints"]]
        assert keys == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]


def test_a_file_that_a_setting_names_is_in_a_mounted_secret(rendered: dict[str, Manifests]) -> None:
    for name, overlay in rendered.items():
        for program in overlay.programs:
            text = yaml.safe_dump(program.spec) + yaml.safe_dump(program.main.environment)
            named = set(re.findall(rf"{SECRETS}[\w./-]+\.\w+|{SECRETS}\w+/\w+", text))
            for container in program.containers:
                assert container.secrets == program.main.secrets
            for mount, secret in program.main.secrets.items():
                files = {file.removeprefix(f"{mount}/") for file in named if file.startswith(f"{mount}/")}
                if name == "trial":
                    kept = overlay.of("Secret")
                    (document,) = [one for one in kept if one["metadata"]["name"] == secret]
                    assert files == set(document["data"])
                else:
                    assert files == documented(secret)
            assert all(file.startswith(tuple(program.main.secrets)) for file in named)


def documented(secret: str) -> set[str]:
    """Files of a secret, in the table of docs/kubernetes.md."""
    table = DOCUMENT.partition("| secret | files |\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `([^|]+)` \| (.+?) \|", table, re.MULTILINE)
    found = {names: set(re.findall(r"`([^`]+)`", files)) for names, files in rows}
    (files,) = [files for names, files in found.items() if secret in names.split("`, `")]
    return files


def test_in_production_every_leg_is_encrypted_and_every_caller_is_known(
    rendered: dict[str, Manifests], monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in rendered["production"].programs:
        with monkeypatch.context() as patch:
            settings = loaded(program, patch)
        assert isinstance(settings, RouterSettings | SimpleMcpSettings | ServiceLayerSettings)
        folder = Path(SECRETS) / "tls"
        assert (settings.tls_certificate, settings.tls_key) == (folder / "tls.crt", folder / "tls.key")
        assert settings.tls_ca == settings.tls_client_ca == folder / "ca.crt"
        # The kubelet's HTTPS probes show no certificate.
        assert settings.tls_public_client_ca is None
        assert program.main.secrets[str(folder)] == f"{program.name}-tls"
        assert settings.public_auth == "jwt"
        assert settings.event_log_security == "SASL_SSL"
        assert settings.event_keys
        if isinstance(settings, RouterSettings):
            assert settings.control_auth == "tokens"
            assert is_loopback(settings.control)
        else:
            assert settings.event_auth == "require"
        if isinstance(settings, ServiceLayerSettings):
            assert settings.redis.startswith("rediss://")
    assert not rendered["production"].of("Secret")


def test_prometheus_finds_every_program(rendered: dict[str, Manifests]) -> None:
    overlay = rendered["production"]
    (monitor,) = overlay.of("ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    (rule,) = monitor["spec"]["selector"]["matchExpressions"]
    with_metrics = [
        service["metadata"]["labels"][NAME]
        for service in overlay.of("Service")
        if endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    ]
    assert sorted(with_metrics) == sorted(rule["values"]) == sorted(PROGRAMS)
    assert (endpoint["scheme"], endpoint["tlsConfig"]["ca"]["secret"]["key"]) == ("https", "ca.crt")
    assert f"`{endpoint['tlsConfig']['serverName']}`" in DOCUMENT


def test_the_servers_of_a_trial_are_set_as_in_the_compose_file(rendered: dict[str, Manifests]) -> None:
    overlay, services = rendered["trial"], composed.services()
    kafka = overlay.workloads["kafka"].main.environment
    own = re.compile("LISTENER|KAFKA_(SSL|SASL|OPTS|LOG_DIRS)")
    expected = {name: value for name, value in services["kafka"].environment.items() if not own.search(name)}
    assert {name: value for name, value in kafka.items() if not own.search(name)} == expected
    for name in ("postgres", "control-postgres"):
        database = overlay.workloads[name].main
        words = [word for word in services["postgres"].said["command"] if not re.match("-c(ssl|hba)", word)]
        assert database.said["args"] == words
        assert database.environment["POSTGRES_INITDB_ARGS"].startswith(
            services["postgres"].environment["POSTGRES_INITDB_ARGS"]
        )
        assert next(iter(database.secrets.values())).startswith(f"{name}-")
    redis = overlay.workloads["redis"].main.said["args"]
    assert redis[redis.index("--save") :] == services["redis"].command[services["redis"].command.index("--save") :]
    for name in ("kafka", "postgres", "redis"):
        assert overlay.workloads[name].main.said["image"] == services[name].said["image"]


def test_the_image_is_this_version(overlay: Manifests) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for program in overlay.programs:
        assert program.main.said["image"].endswith(f"baton:{version}")
        assert program.spec["securityContext"]["runAsUser"] == program.spec["securityContext"]["fsGroup"] == 10001
