"""Real servers for the tests, started at first use and stopped at the end of the session.

The servers are plain objects without an event loop, so tests of any loop scope can share them. A server that a test
killed or paused runs again for the next test that requests it.
"""

import gc
import itertools
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from libs.proving.servers.kafka import Kafka
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.process import ServerProcess
from libs.proving.servers.redis import Redis
from libs.proving.servers.stack import server_directory
from tests import commands, forks
from tests.leaks import SESSION_SERVERS, no_process_is_left, no_task_is_left, pytest_itemcollected
from tests.servers import make_usable

# pytest finds fixtures and hooks here by name.
__all__ = ["no_process_is_left", "no_task_is_left", "pytest_itemcollected"]

TOPIC_PARTITIONS = 16

# No deadline for examples: a busy machine is not a failure.
settings.register_profile("baton", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("check", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=20)
settings.register_profile("fuzz", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=10_000)
settings.load_profile("baton")

_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Only a top-level conftest may add options."""
    parser.addoption("--no-servers", action="store_true", help="skip tests that need Kafka, PostgreSQL or Redis")
    parser.addoption("--rewrite", action="store_true", help="write what the transcripts now say; review the difference")


def pytest_sessionstart() -> None:
    commands.start()
    forks.use()


def pytest_sessionfinish() -> None:
    forks.stop()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from the collected tests: they live as long as the session, in hundreds of thousands
    of objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture(scope="session")
def stack_directory() -> Iterator[Path]:
    """A directory for the servers' data. Not inside pytest's own, which PostgreSQL's user may not enter."""
    with server_directory() as directory:
        yield directory


@pytest.fixture(scope="session")
def kafka_server(request: pytest.FixtureRequest, stack_directory: Path) -> Iterator[Kafka]:
    """The session's broker. Tests request `kafka`, which is running."""
    _may_start(request)
    server = Kafka(stack_directory / "kafka")
    with _kept(server.process):
        server.start()
        yield server


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest, stack_directory: Path) -> Iterator[Postgres]:
    """The session's PostgreSQL. Tests request `postgres`, which is running."""
    _may_start(request)
    server = Postgres(stack_directory / "postgres")
    with _kept(server.process):
        server.start()
        yield server


@pytest.fixture(scope="session")
def redis_process(request: pytest.FixtureRequest, stack_directory: Path) -> Iterator[Redis]:
    """The session's Redis. Tests request `redis_server`, which is running."""
    _may_start(request)
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
    """Address of an empty database for the test, in asyncpg's form."""
    name = f"test_{next(_numbers)}"
    yield postgres.create_database(name)
    if postgres.process.running:
        postgres.drop_database(name)


@pytest.fixture(scope="session")
def store_template(postgres_server: Postgres) -> None:
    """The database that those of `store_dsn` are copies of."""
    make_usable(postgres_server)
    # Few sessions need these imports.
    from tests.databases import make_template

    make_template(postgres_server)


@pytest.fixture
def store_dsn(postgres: Postgres, store_template: None) -> Iterator[str]:
    """Address of a database for the test, with B's schema and no records, in asyncpg's form."""
    from tests.databases import copy_template

    name = f"test_{next(_numbers)}"
    yield copy_template(postgres, name)
    if postgres.process.running:
        postgres.drop_database(name)


@pytest.fixture
async def kafka_topic(kafka: Kafka) -> AsyncIterator[str]:
    """Name of an empty topic for the test, with 16 partitions."""
    name = f"test.{next(_numbers)}"
    await kafka.create_topic(name, TOPIC_PARTITIONS, {"cleanup.policy": "delete", "retention.ms": "-1"})
    yield name
    if kafka.process.running:
        await kafka.delete_topic(name)


def _may_start(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--no-servers"):
        pytest.skip("needs a server")


@contextmanager
def _kept(process: ServerProcess) -> Iterator[None]:
    """Keep the server for the session. Its data is discarded, so it is killed at the end."""
    SESSION_SERVERS.append(process)
    try:
        yield
    finally:
        process.kill()
