"""Paths of the servers' programs on this machine, and remedies for missing ones.

`python -m libs.proving.servers` uses the same functions, so it installs exactly the programs that the servers need.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from libs.proving.servers.errors import ServerMissing

PROJECT_ROOT = Path(__file__).parents[3]
KAFKA_DEPLOY = PROJECT_ROOT / "deploy" / "kafka"
KAFKA_JARS = PROJECT_ROOT / "build" / "kafka" / "jars"
KAFKA_ARCHIVE = PROJECT_ROOT / "build" / "kafka" / "classes.jsa"
"""The broker's classes as Java has loaded them once (class data sharing); may be missing."""
POSTGRES_PACKAGE, PGBOUNCER_PACKAGE, REDIS_PACKAGE = "postgresql", "pgbouncer", "redis-server"
JAVA_PACKAGE, MAVEN_PACKAGE, GO_PACKAGE = "default-jre-headless", "maven", "golang-go"
CHROMIUM_PACKAGE, PROMETHEUS_PACKAGE = "chromium", "prometheus"
MAVEN_COMMAND = (
    "mvn",
    "-q",
    "-B",
    "-f",
    str(KAFKA_DEPLOY / "pom.xml"),
    "dependency:copy-dependencies",
    f"-DoutputDirectory={KAFKA_JARS}",
)

KUBERNETES_BIN = PROJECT_ROOT / "build" / "kubernetes" / "bin"
KUSTOMIZE_MODULE = "sigs.k8s.io/kustomize/kustomize/v5@v5.7.1"
KUBECONFORM_MODULE = "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0"

_POSTGRES_PROGRAMS = ("initdb", "postgres", "pg_isready", "psql")
_DEBIAN_POSTGRES = Path("/usr/lib/postgresql")
_CHROMIUM_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_GO_OLDEST = (1, 24)
_GO_SECONDS = 30.0


def postgres_bin() -> Path:
    """The folder with PostgreSQL's server and client programs, of the newest version.

    Raises ServerMissing.
    """
    candidates = sorted(_DEBIAN_POSTGRES.glob("*/bin"), key=_version, reverse=True)
    on_path = shutil.which("postgres")
    if on_path:
        candidates.append(Path(on_path).resolve().parent)
    for folder in candidates:
        if all((folder / program).exists() for program in _POSTGRES_PROGRAMS):
            return folder
    raise ServerMissing(
        f"PostgreSQL is missing: no folder {_DEBIAN_POSTGRES}/*/bin and no folder on PATH has all of "
        f"{', '.join(_POSTGRES_PROGRAMS)}. Debian: apt-get install {POSTGRES_PACKAGE}"
    )


def pgbouncer() -> Path:
    """The connection pooler pgbouncer. Raises ServerMissing."""
    # Debian installs it in a folder that is on root's PATH only.
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    return Path(found) if found else _program("pgbouncer", "The pooler pgbouncer", PGBOUNCER_PACKAGE)


def redis_server() -> Path:
    """The program redis-server. Raises ServerMissing."""
    return _program("redis-server", "Redis", REDIS_PACKAGE)


def java() -> Path:
    """The program java, which must be version 17 or later. Raises ServerMissing."""
    return _program("java", "A Java runtime (17 or later, for Kafka)", JAVA_PACKAGE)


def maven() -> Path:
    """The program mvn, needed once, to get Kafka. Raises ServerMissing."""
    return _program("mvn", "Maven (to get Kafka)", MAVEN_PACKAGE)


def kafka_jars() -> Path:
    """The folder with the broker's jars. Raises ServerMissing."""
    if any(KAFKA_JARS.glob("kafka_2.13-*.jar")):
        return KAFKA_JARS
    raise ServerMissing(f"Kafka is missing: {KAFKA_JARS} has no kafka_2.13-*.jar. Get it: {' '.join(MAVEN_COMMAND)}")


def go() -> Path:
    """The program go, for the tests of the Go client. Raises ServerMissing."""
    remedy = f"Debian 13 or later: apt-get install {GO_PACKAGE}; else see https://go.dev/doc/install"
    oldest = ".".join(map(str, _GO_OLDEST))
    path = shutil.which("go", path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/go/bin")
    if path is None:
        raise ServerMissing(f"Go ({oldest} or later, for a client in the tests) is missing: no go on PATH. {remedy}")
    try:
        shown = subprocess.run(
            [path, "env", "GOVERSION"], cwd="/", capture_output=True, text=True, check=True, timeout=_GO_SECONDS
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerMissing(f"Go: {path} does not run: {error}. {remedy}") from None
    found = re.match(r"go(\d+)\.(\d+)", shown)
    if found is None or (int(found[1]), int(found[2])) < _GO_OLDEST:
        raise ServerMissing(f"Go: {path} is {shown or 'of no version'}, and {oldest} or later is needed. {remedy}")
    return Path(path)


def kustomize() -> tuple[str, ...]:
    """The command that renders a folder of Kubernetes manifests: kustomize's, or kubectl's. Raises ServerMissing."""
    path = f"{os.environ.get('PATH', os.defpath)}:{KUBERNETES_BIN}"
    if found := shutil.which("kustomize", path=path):
        return found, "build"
    if found := shutil.which("kubectl"):
        return found, "kustomize"
    raise ServerMissing(f"kustomize (to render the Kubernetes manifests) is missing. {_go_remedy(KUSTOMIZE_MODULE)}")


def kubeconform() -> Path:
    """The program kubeconform, for the tests of the Kubernetes manifests. Raises ServerMissing."""
    path = f"{os.environ.get('PATH', os.defpath)}:{KUBERNETES_BIN}"
    if found := shutil.which("kubeconform", path=path):
        return Path(found)
    raise ServerMissing(f"kubeconform (to check the Kubernetes manifests) is missing. {_go_remedy(KUBECONFORM_MODULE)}")


def _go_remedy(module: str) -> str:
    return f"Get it: GOBIN={KUBERNETES_BIN} go install {module}"


def chromium() -> Path:
    """The browser, for the tests of the page at /. Raises ServerMissing."""
    found = filter(None, map(shutil.which, _CHROMIUM_PROGRAMS))
    return Path(next(found, None) or _program("chromium", "The browser Chromium", CHROMIUM_PACKAGE))


def prometheus() -> Path:
    """The server Prometheus, for the tests of metrics and alerts. Raises ServerMissing."""
    return _program("prometheus", "Prometheus", PROMETHEUS_PACKAGE)


def promtool() -> Path:
    """The checker of Prometheus's rules. Raises ServerMissing."""
    return _program("promtool", "Prometheus's promtool", PROMETHEUS_PACKAGE)


def _program(name: str, title: str, package: str) -> Path:
    path = shutil.which(name)
    if path is None:
        raise ServerMissing(f"{title} is missing: no program {name} on PATH. Debian: apt-get install {package}")
    return Path(path)


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.parent.name.split(".") if part.isdigit())
