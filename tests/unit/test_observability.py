"""The services beside the system in Compose fit it: files that exist, targets that serve metrics, settings."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from libs.proving.servers import locate
from libs.proving.servers.errors import ServerMissing

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "observability"
PROGRAMS = {"simple-mcp": "SIMPLE_MCP_", "service-layer": "SERVICE_LAYER_", "router": "BATON_ROUTER_"}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


SYSTEM = load(ROOT / "docker-compose.yml")["services"]
BESIDE = load(ROOT / "docker-compose.observability.yml")["services"]
BOUGHT = {name: service for name, service in BESIDE.items() if "image" in service}


def test_prometheus_reads_the_metrics_of_each_program() -> None:
    found = set()
    for job in load(FOLDER / "prometheus.yml")["scrape_configs"]:
        assert job["scheme"] == "https"
        found |= {target for part in job.get("static_configs", ()) for target in part["targets"]}
        found |= {f"{name}:{part['port']}" for part in job.get("dns_sd_configs", ()) for name in part["names"]}
    served = {
        f"{name}:{SYSTEM[name]['environment'][f'{prefix}METRICS'].rpartition(':')[2]}"
        for name, prefix in PROGRAMS.items()
    }
    assert found == served


def test_the_programs_send_traces_to_the_collector() -> None:
    (port,) = (
        receiver["protocols"]["grpc"]["endpoint"].rpartition(":")[2]
        for receiver in load(FOLDER / "collector.yml")["receivers"].values()
    )
    for name, prefix in PROGRAMS.items():
        assert BESIDE[name] == {"environment": {f"{prefix}OTLP_ENDPOINT": f"http://collector:{port}"}}


def test_the_services_beside_the_system_start_only_if_they_are_asked_for() -> None:
    assert set(BESIDE) == {*BOUGHT, *PROGRAMS}
    for name, service in BOUGHT.items():
        assert service["profiles"] == ["observability"] and name not in SYSTEM
        assert service["cap_drop"] == ["ALL"]
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), "reachable from this machine only"
        for mount in service["volumes"]:
            source, _, mode = mount.split(":")
            assert (ROOT / source).exists() and mode == "ro", mount


def test_prometheus_takes_its_file() -> None:
    try:
        promtool = locate.promtool()
    except ServerMissing as error:
        pytest.skip(str(error))
    command = [str(promtool), "check", "config", "--syntax-only", str(FOLDER / "prometheus.yml")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout + found.stderr
