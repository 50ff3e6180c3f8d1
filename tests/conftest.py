"""Real servers for the tests: started at their first use, stopped at the end of the session.

The servers are plain objects without an event loop, so tests of any loop scope may share them. A server that a test
killed or paused runs again for the next test that asks for it.
"""

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from libs.proving.servers.kafka import Kafka
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.process import ServerProcess
from libs.proving.servers.redis import Redis
from libs.proving.servers.stack import server_directory
from tests import commands
from tests.leaks import SESSION_SERVERS, no_process_is_left, no_task_is_left, pytest_itemcollected
from tests.servers import make_usable

# Fixtures and hooks are found here by their names.
__all__ = ["no_process_is_left", "no_task_is_left", "pytest_itemcollected"]

TOPIC_PARTITIONS = 16

# A machine that is busy with other tests is no failure: no example is held to a time.
settings.register_profile("baton", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("baton")

_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Only a conftest at the top may add options."""
    parser.addoption("--rewrite", action="store_true", help="write what the transcripts now say; review the difference")


def pytest_sessionstart() -> None:
    commands.start()


@pytest.fixture(scope="session")
def stack_directory() -> Iterator[Path]:
    """A directory for the servers' data. Not below pytest's own, which PostgreSQL's user may not enter."""
    with server_directory() as directory:
        yield directory


@pytest.fixture(scope="session")
def kafka_server(stack_directory: Path) -> Iterator[Kafka]:
    """The session's broker. Tests ask for `kafka`, which is known to run."""
    server = Kafka(stack_directory / "kafka")
    with _kept(server.process):
        server.start()
        yield server


@pytest.fixture(scope="session")
def postgres_server(stack_directory: Path) -> Iterator[Postgres]:
    """The session's PostgreSQL. Tests ask for `postgres`, which is known to run."""
    server = Postgres(stack_directory / "postgres")
    with _kept(server.process):
        server.start()
        yield server


@pytest.fixture(scope="session")
def redis_process(stack_directory: Path) -> Iterator[Redis]:
    """The session's Redis. Tests ask for `redis_server`, which is known to run."""
    server = Redis(stack_directory / "redis")
    with _kept(server.process):
        server.start()
        yield server


@pytest.fixture
def kafka(kafka_server: Kafka) -> Kafka:
    """A running broker, shared by all tests."""
    make_usable(kafka_server)
    return kafka_server


@pytest.fixture
def postgres(postgres_server: Postgres) -> Postgres:
    """A running PostgreSQL, shared by all tests."""
    make_usable(postgres_server)
    return postgres_server


@pytest.fixture
def redis_server(redis_process: Redis) -> Redis:
    """A running Redis, shared by all tests."""
    make_usable(redis_process)
    return redis_process


@pytest.fixture
def postgres_dsn(postgres: Postgres) -> Iterator[str]:
    """The address of an empty database of the test's own, as asyncpg takes it."""
    name = f"test_{next(_numbers)}"
    yield postgres.create_database(name)
    if postgres.process.running:
        postgres.drop_database(name)


@pytest.fixture
async def kafka_topic(kafka: Kafka) -> AsyncIterator[str]:
    """The name of an empty topic of the test's own, with 16 partitions."""
    name = f"test.{next(_numbers)}"
    await kafka.create_topic(name, TOPIC_PARTITIONS, {"cleanup.policy": "delete", "retention.ms": "-1"})
    yield name
    if kafka.process.running:
        await kafka.delete_topic(name)


@contextmanager
def _kept(process: ServerProcess) -> Iterator[None]:
    """Let the server outlive single tests; its data is thrown away, so in the end it is killed."""
    SESSION_SERVERS.append(process)
    try:
        yield
    finally:
        process.kill()
