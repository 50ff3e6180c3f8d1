"""`python -m libs.proving.servers`: install the servers' programs.

Installs Debian packages when it runs as root on a machine with apt-get, Kafka's jars by Maven, and the tools for
Kubernetes manifests by Go. For anything else that is missing it prints the command to get it, and exits with 1.
Chromium, Prometheus and those tools may be missing: their tests are skipped then.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from libs.proving.servers import locate
from libs.proving.servers.errors import ServerMissing, ServersError
from libs.proving.servers.kafka import Kafka
from libs.proving.servers.stack import server_directory

_STEP_SECONDS = 600
_OPTIONAL = {
    locate.CHROMIUM_PACKAGE,
    locate.PROMETHEUS_PACKAGE,
    locate.KUSTOMIZE_MODULE,
    locate.KUBECONFORM_MODULE,
}
_GO_MODULES: dict[str, Callable[[], object]] = {
    locate.KUSTOMIZE_MODULE: locate.kustomize,
    locate.KUBECONFORM_MODULE: locate.kubeconform,
}


def main() -> int:
    """Install missing programs. Returns 0 if all are present in the end, else 1."""
    packages: dict[str, Callable[[], object]] = {
        locate.POSTGRES_PACKAGE: locate.postgres_bin,
        locate.PGBOUNCER_PACKAGE: locate.pgbouncer,
        locate.REDIS_PACKAGE: locate.redis_server,
        locate.JAVA_PACKAGE: locate.java,
        locate.GO_PACKAGE: locate.go,
        locate.CHROMIUM_PACKAGE: locate.chromium,
        locate.PROMETHEUS_PACKAGE: locate.prometheus,
    }
    if _missing(locate.kafka_jars):
        packages[locate.MAVEN_PACKAGE] = locate.maven
    absent = [package for package, look_up in packages.items() if _missing(look_up)]
    if absent and os.geteuid() == 0 and shutil.which("apt-get"):
        # If apt-get cannot find one package, it installs none: an optional one must not keep the others away.
        for some in (set(absent) - _OPTIONAL, set(absent) & _OPTIONAL):
            if some:
                _apt_get(sorted(some))
    if _missing(locate.kafka_jars) and not _missing(locate.maven):
        _run(list(locate.MAVEN_COMMAND))
    for module, look_up in _GO_MODULES.items():
        if _missing(look_up) and not _missing(locate.go):
            _run([str(locate.go()), "install", module], {"GOBIN": str(locate.KUBERNETES_BIN)})
    if not (_missing(locate.kafka_jars) or _missing(locate.java) or locate.KAFKA_ARCHIVE.exists()):
        _archive_classes(locate.KAFKA_ARCHIVE)
    packages |= {"kafka": locate.kafka_jars, **_GO_MODULES}
    missing = {package: problem for package, look_up in packages.items() if (problem := _missing(look_up))}
    for problem in missing.values():
        print(problem, file=sys.stderr)
    return 1 if missing.keys() - _OPTIONAL else 0


def _missing(look_up: Callable[[], object]) -> str:
    try:
        look_up()
    except ServerMissing as error:
        return str(error)
    return ""


def _archive_classes(file: Path) -> None:
    """Start a broker once, and keep its loaded classes for all later starts."""
    print(f"+ archive Kafka's classes in {file}", flush=True)
    written = file.with_suffix(".part")
    try:
        with server_directory() as directory:
            kafka = Kafka(directory / "kafka", write_archive=written)
            kafka.start()
            kafka.stop()
        written.rename(file)
    except (OSError, ServersError) as error:
        print(f"failed, so each start of Kafka takes longer: {error}", file=sys.stderr)


def _apt_get(packages: list[str]) -> None:
    # RUNLEVEL=1 keeps Debian from starting the servers that it installs: we start our own.
    environment = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    _run(["apt-get", "-q", "update"], environment)
    _run(["apt-get", "-q", "-y", "install", "--no-install-recommends", *packages], environment)


def _run(argv: list[str], environment: dict[str, str] | None = None) -> None:
    print("+", " ".join(argv), flush=True)
    try:
        subprocess.run(
            argv,
            check=True,
            stdin=subprocess.DEVNULL,
            timeout=_STEP_SECONDS,
            env={**os.environ, **(environment or {})},
        )
    except (OSError, subprocess.SubprocessError) as error:
        # Programs that are still missing are reported at the end, for all servers at once.
        print(f"failed: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
