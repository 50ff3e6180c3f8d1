"""Parses the Kubernetes manifests, as files and as kustomize renders them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from deploy.kubernetes.make_secrets import make_secrets
from libs.process import ProcessSettings
from libs.proving.servers import locate
from tests.composed import ROOT, SETTINGS

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("trial", "production")
NAME = "app.kubernetes.io/name"
SECRETS = "/run/baton/"
"""Folder of the programs' mounted secrets."""
WORKLOADS = ("Deployment", "StatefulSet")
VOLUME = "data-simple-mcp-0"
"""The claim of A's pod."""

Document = dict[str, Any]


def render(overlay: str, directory: Path) -> list[Document]:
    """The overlay's documents, with credentials made in a copy. Raises ServerMissing without kustomize."""
    command = locate.kustomize()
    folder = directory / "kubernetes"
    if not folder.exists():
        shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("secrets"))
        make_secrets(folder / "overlays" / "trial" / "secrets")
    done = subprocess.run(
        [*command, str(folder / "overlays" / overlay)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def files() -> Iterator[Document]:
    """All documents as they are written; patches and kustomizations are none."""
    for path in sorted([*FOLDER.glob("*.yaml"), *FOLDER.glob("base/*.yaml"), *FOLDER.glob("components/**/*.yaml")]):
        if path.name != "kustomization.yaml":
            yield from yaml.safe_load_all(path.read_text())


def schemas() -> dict[str, Document]:
    """A strict schema of each kind, complete in itself, by kubeconform's name of its file."""
    folder = FOLDER / "schemas"
    definitions = json.loads((folder / "kubernetes.json").read_text())["$defs"]
    found = {"servicemonitor-monitoring-v1": json.loads((folder / "servicemonitor.json").read_text())}
    for name, schema in definitions.items():
        kinds = schema.get("properties", {}).get("kind", {}).get("enum")
        if kinds and "metadata" in schema["properties"]:
            api_version = schema["properties"]["apiVersion"]["enum"][0]
            found[schema_name({"kind": kinds[0], "apiVersion": api_version})] = {"$ref": f"#/$defs/{name}"}
    return {name: {**schema, "$defs": definitions} for name, schema in found.items()}


def schema_name(document: Document) -> str:
    """The document's schema as kubeconform names it: deployment-apps-v1."""
    group, _, version = document["apiVersion"].rpartition("/")
    parts = [document["kind"].lower(), group.partition(".")[0], version]
    return "-".join(part for part in parts if part)


@dataclass(frozen=True)
class Container:
    """One container of a pod."""

    said: Document
    pod: Workload

    @property
    def name(self) -> str:
        return str(self.said["name"])

    @property
    def command(self) -> list[str]:
        return list(self.said["command"])

    @property
    def environment(self) -> dict[str, str]:
        """The environment that the kubelet sets, without service links."""
        found: dict[str, str] = {}
        for source in self.said.get("envFrom", []):
            found |= self.pod.manifests.named("ConfigMap", source["configMapRef"]["name"])["data"]
        for one in self.said.get("env", []):
            field = one.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
            found[one["name"]] = f"{self.pod.name}-0" if field == "metadata.name" else one["value"]
        return found

    @property
    def secrets(self) -> dict[str, str]:
        """Name of the mounted Secret by the folder that it is mounted at."""
        volumes = {volume["name"]: volume.get("secret", {}).get("secretName") for volume in self.pod.spec["volumes"]}
        mounts = [mount for mount in self.said.get("volumeMounts", []) if volumes.get(mount["name"])]
        return {mount["mountPath"]: volumes[mount["name"]] for mount in mounts}

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.said.get("ports", [])}


@dataclass(frozen=True)
class Workload:
    """A Deployment or StatefulSet."""

    said: Document
    manifests: Manifests

    @property
    def name(self) -> str:
        return str(self.said["metadata"]["name"])

    @property
    def spec(self) -> Document:
        """Spec of the workload's pods."""
        return dict(self.said["spec"]["template"]["spec"])

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.said["spec"]["template"]["metadata"]["labels"])

    @property
    def containers(self) -> list[Container]:
        """Containers in order: those that end before, then the ones that stay."""
        return [Container(one, self) for one in [*self.spec.get("initContainers", []), *self.spec["containers"]]]

    @property
    def main(self) -> Container:
        (container,) = self.spec["containers"]
        return Container(container, self)

    @property
    def ours(self) -> bool:
        return str(self.main.said["image"]).partition(":")[0].rpartition("/")[2] == "baton"

    @property
    def kind(self) -> type[ProcessSettings]:
        """The settings of its program."""
        return SETTINGS[self.main.command[2]]

    @property
    def prefix(self) -> str:
        return str(self.kind.model_config["env_prefix"])

    @property
    def settings(self) -> dict[str, str]:
        return {name: value for name, value in self.main.environment.items() if name.startswith(self.prefix)}


@dataclass(frozen=True)
class Manifests:
    """The documents of one overlay."""

    documents: list[Document]

    def of(self, *kinds: str) -> list[Document]:
        return [document for document in self.documents if document["kind"] in kinds]

    def named(self, kind: str, name: str) -> Document:
        (found,) = [one for one in self.of(kind) if one["metadata"]["name"] == name]
        return found

    @cached_property
    def workloads(self) -> dict[str, Workload]:
        return {one.name: one for one in (Workload(document, self) for document in self.of(*WORKLOADS))}

    @property
    def programs(self) -> list[Workload]:
        return [workload for workload in self.workloads.values() if workload.ours]

    @property
    def services(self) -> dict[str, Document]:
        return {one["metadata"]["name"]: one["spec"] for one in self.of("Service")}

    def behind(self, service: str) -> Workload:
        """The workload that the service's selector finds."""
        selector = self.services[service]["selector"].items()
        (found,) = [one for one in self.workloads.values() if selector <= one.labels.items()]
        return found

    def service_links(self) -> dict[str, str]:
        """The variables that a pod gets for all services unless links are off."""
        found: dict[str, str] = {}
        for number, (name, spec) in enumerate(sorted(self.services.items()), 1):
            prefix, host = name.upper().replace("-", "_"), f"10.96.0.{number}"
            found[f"{prefix}_SERVICE_HOST"] = host
            for index, port in enumerate(spec["ports"]):
                number_of, address = str(port["port"]), f"tcp://{host}:{port['port']}"
                named = f"{prefix}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"
                place = f"{prefix}_PORT_{number_of}_TCP"
                found |= {named: number_of, place: address, f"{place}_PROTO": "tcp"}
                found |= {f"{place}_PORT": number_of, f"{place}_ADDR": host}
                if index == 0:
                    found |= {f"{prefix}_SERVICE_PORT": number_of, f"{prefix}_PORT": address}
        return found
