"""This machine as a node of Kubernetes: it starts the containers of the manifests and asks their probes.

Addresses and mounted folders are replaced by ones of this machine; all else is as the manifests say.
"""

from __future__ import annotations

import os
import re
import shlex
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from libs.proving.servers.ports import free_port
from libs.proving.servers.process import Command, ServerProcess
from libs.rpc.health import trouble
from tests.composed import ROOT
from tests.manifests import Container, Manifests, Workload

LISTENERS = (50051, 50052, 50053, 50061, 50062, 50063, 7600, 7601, 7680, 7700, 9464, 9465, 9466)
_NAMES = ("simple-mcp:50052", "service-layer:50062", "router-internal:7601")
_PROBE_SECONDS = 120.0


class Node:
    """One overlay's programs."""

    def __init__(self, manifests: Manifests, directory: Path, servers: Mapping[str, str]) -> None:
        """`servers`: places here, by the addresses in the manifests."""
        self.manifests = manifests
        self._directory = directory
        self.ports = {port: free_port() for port in LISTENERS}
        self._places = {
            **servers,
            **{name: self.address(int(name.partition(":")[2])) for name in _NAMES},
            **{f"{host}:{port}": self.address(port) for port in LISTENERS for host in ("0.0.0.0", "127.0.0.1")},
        }
        self.running: dict[str, ServerProcess] = {}

    def address(self, port: int) -> str:
        """Where the listener with this port in the manifests is."""
        return f"127.0.0.1:{self.ports[port]}"

    def folder(self, workload: Workload, mount: str) -> Path:
        """The folder that is mounted there."""
        found = self._directory / workload.name / mount.strip("/").replace("/", "-")
        found.mkdir(parents=True, exist_ok=True)
        return found

    def mount(self, workload: Workload, mount: str, files: Mapping[str, bytes]) -> None:
        """Mount a secret, or replace its contents, as the kubelet does: all files at once, by a link."""
        folder = self.folder(workload, mount)
        number = len(list(folder.glob("..v*")))
        (folder / f"..v{number}").mkdir()
        for name, content in files.items():
            file = folder / f"..v{number}" / name
            file.write_bytes(self._here(workload, content.decode()).encode())
            file.chmod(0o440)
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(f"..data/{name}")
        (folder / "..new").symlink_to(f"..v{number}")
        (folder / "..new").rename(folder / "..data")

    def start(self, workload: Workload) -> None:
        """Run the init containers, then start the program."""
        for container in workload.containers:
            name = f"{workload.name}-{container.name}"
            words = self.words(container, container.command)
            log = self._directory / f"{name}.log"
            process = ServerProcess(Command(name, words, log, ROOT, self.environment(container)))
            process.start()
            if container.name == workload.main.name:
                self.running[workload.name] = process
            else:
                process.wait_for_exit(_PROBE_SECONDS)
                assert process.exit_code == 0, process.log_tail()

    def environment(self, container: Container) -> dict[str, str]:
        """The container's, among the links of all services."""
        found = {**self.manifests.service_links(), **container.environment}
        return {**os.environ, **{name: self._here(container.pod, value) for name, value in found.items()}}

    def words(self, container: Container, words: list[str]) -> list[str]:
        """The command, with this Python."""
        found = [self._here(container.pod, word) for word in words]
        if found[:2] == ["sh", "-c"]:
            return ["sh", "-c", found[2].replace("python ", f"{shlex.quote(sys.executable)} ")]
        return [sys.executable if word == "python" else word for word in found]

    def wait_for(self, workload: Workload, probe: str) -> None:
        """Until the probe succeeds. Raises ServerFailed."""
        self.running[workload.name].wait_until(lambda: self.passes(workload, probe), _PROBE_SECONDS, f"{probe} passes")

    def passes(self, workload: Workload, probe: str) -> bool:
        """Probe as the kubelet does: gRPC without TLS, HTTPS without a check of the certificate."""
        said = workload.main.said[probe]
        seconds = said["timeoutSeconds"]
        if "grpc" in said:
            return not trouble(self.address(said["grpc"]["port"]), seconds)
        if "exec" in said:
            words = self.words(workload.main, said["exec"]["command"])
            done = subprocess.run(words, cwd=ROOT, capture_output=True, timeout=_PROBE_SECONDS, check=False)
            return done.returncode == 0
        asked = said["httpGet"]
        address = self.address(workload.main.ports[asked["port"]])
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        url = f"{asked.get('scheme', 'HTTP').lower()}://{address}{asked['path']}"
        try:
            with urllib.request.urlopen(url, timeout=seconds, context=context) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        for process in self.running.values():
            process.kill()

    def _here(self, workload: Workload, text: str) -> str:
        mounts = {
            mount["mountPath"]: str(self.folder(workload, mount["mountPath"]))
            for container in workload.containers
            for mount in container.said.get("volumeMounts", [])
        }
        places = mounts | self._places
        # The longest first, and in one pass: a place may contain the name of another one.
        known = "|".join(re.escape(name) for name in sorted(places, key=len, reverse=True))
        return re.sub(known, lambda found: places[found[0]], text)
