"""Where the servers' programs are on this machine, and what to do when they are not.

`python -m libs.devstack` uses the same look-ups, so that it gets exactly what the servers will later look for.
"""

import os
import shutil
from pathlib import Path

from libs.devstack.errors import ServerMissing

PROJECT_ROOT = Path(__file__).parents[2]
KAFKA_DEPLOY = PROJECT_ROOT / "deploy" / "kafka"
KAFKA_JARS = PROJECT_ROOT / "build" / "kafka" / "jars"
POSTGRES_PACKAGE, PGBOUNCER_PACKAGE, REDIS_PACKAGE, JAVA_PACKAGE, MAVEN_PACKAGE = (
    "postgresql",
    "pgbouncer",
    "redis-server",
    "default-jre-headless",
    "maven",
)
MAVEN_COMMAND = (
    "mvn",
    "-q",
    "-B",
    "-f",
    str(KAFKA_DEPLOY / "pom.xml"),
    "dependency:copy-dependencies",
    f"-DoutputDirectory={KAFKA_JARS}",
)

_POSTGRES_PROGRAMS = ("initdb", "postgres", "pg_isready", "psql")
_DEBIAN_POSTGRES = Path("/usr/lib/postgresql")


def postgres_bin() -> Path:
    """The folder with PostgreSQL's server and client programs; the newest version, if there are several.

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
    """The program pgbouncer, a connection pooler. Raises ServerMissing."""
    # Debian keeps it where only root looks.
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


def _program(name: str, title: str, package: str) -> Path:
    path = shutil.which(name)
    if path is None:
        raise ServerMissing(f"{title} is missing: no program {name} on PATH. Debian: apt-get install {package}")
    return Path(path)


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.parent.name.split(".") if part.isdigit())
