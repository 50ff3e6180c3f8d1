"""Kafka, PostgreSQL and Redis over TLS with users and passwords, each combination that the documents name."""

from __future__ import annotations

import base64
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from libs.clock import SystemClock
from libs.errors import StoreUnavailable
from libs.eventlog.address import LogAddress, open_event_log
from libs.eventlog.port import Event, LogUnavailable, Stored
from libs.eventlog.security import KafkaAccess, KafkaSecurity
from libs.locks.port import LocksUnavailable
from libs.locks.redis import RedisLocks
from libs.locks.redis_security import RedisSecurity, connection_options
from libs.postgres import UnfitDatabase
from libs.proving.servers.kafka import Kafka
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.redis import Redis
from libs.proving.servers.secure import Certificate, SecureListeners
from libs.tls.files import TlsUnfit
from services.router.control.port import ControlUnavailable
from services.router.control.postgres import PostgresControlStore
from services.service_layer.store import postgres, postgres_schema
from tests.certificates import Authority, Pair
from tests.certificates import replace as write
from tests.waiting import eventually

USER, PASSWORD = "baton", "a-password-that-nobody-guesses"
WRONG = "another-password-for-the-test"


@pytest.fixture(scope="module")
def directory(request: pytest.FixtureRequest, stack_directory: Path) -> Path:
    if request.config.getoption("--no-servers"):
        pytest.skip("needs a server")
    found = stack_directory / "secure"
    found.mkdir()
    # The user that PostgreSQL runs as enters it.
    found.chmod(0o711)
    return found


@pytest.fixture(scope="module")
def authority(directory: Path) -> Authority:
    return Authority(directory)


@pytest.fixture(scope="module")
def stranger(directory: Path) -> Authority:
    return Authority(directory, "stranger")


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    pair = authority.issue("server", "127.0.0.1")
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    # Kafka reads keys in PKCS 8 only.
    form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write(pair.key, key.private_bytes(serialization.Encoding.PEM, *form))
    return Certificate(pair.certificate, pair.key, authority.file)


def secret(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    write(path, f"{text}\n".encode())
    return path


@pytest.fixture(scope="module")
def listeners(certificate: Certificate) -> SecureListeners:
    return SecureListeners(certificate, {USER: PASSWORD})


@pytest.fixture(scope="module")
def broker(directory: Path, listeners: SecureListeners) -> Iterator[Kafka]:
    server = Kafka(directory / "kafka", listeners)
    server.start()
    yield server
    server.process.kill()


@pytest.fixture(scope="module")
def database(directory: Path, certificate: Certificate) -> Iterator[Postgres]:
    server = Postgres(directory / "postgres", certificate=certificate)
    server.start()
    server.require_tls(USER, PASSWORD)
    yield server
    server.process.kill()


@pytest.fixture(scope="module")
def lock_server(directory: Path, certificate: Certificate) -> Iterator[Redis]:
    server = Redis(directory / "redis", certificate=certificate, users={USER: PASSWORD})
    server.start()
    yield server
    server.process.kill()


def token(subject: str) -> str:
    """An unsigned token, which a broker for development accepts."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    now = time.time()
    return f"{part({'alg': 'none'})}.{part({'sub': subject, 'iat': now, 'exp': now + 600})}."


class Log:
    """Addresses of the broker's listeners."""

    def __init__(self, directory: Path, listeners: SecureListeners, authority: Authority) -> None:
        self.directory = directory
        self.sasl = f"kafka://127.0.0.1:{listeners.sasl_port}/"
        self.ssl = f"kafka://127.0.0.1:{listeners.ssl_port}/"
        self.security = KafkaSecurity(
            "SASL_SSL", "SCRAM-SHA-512", USER, secret(directory, "password", PASSWORD), authority.file
        )

    def address(self, topic: str, url: str = "", **changed: Any) -> LogAddress:
        return LogAddress(
            (url or self.sasl) + topic,
            partitions=1,
            create=True,
            replication_factor=1,
            min_insync_replicas=1,
            security=replace(self.security, **changed),
        )


@pytest.fixture
def log(directory: Path, broker: Kafka, listeners: SecureListeners, authority: Authority) -> Log:
    return Log(directory, listeners, authority)


async def round_trip(address: LogAddress) -> None:
    """Append an event and read it."""
    async with open_event_log(address) as opened:
        await opened.append([Event(key="one", value=b"value", headers=())])
        async with opened.reader({0: 0}) as reader:
            found: list[Stored] = []
            while not found:
                found = await reader.poll(10, 1.0)
    assert found[0].event.value == b"value"


def mtls(log: Log, pair: Pair) -> LogAddress:
    return log.address(
        "mtls",
        log.ssl,
        protocol="SSL",
        mechanism="",
        user="",
        password_file=None,
        certificate=pair.certificate,
        key=pair.key,
    )


KAFKA: dict[str, Callable[[Log, Authority], LogAddress]] = {
    "SASL_SSL SCRAM-SHA-512": lambda log, _: log.address("scram"),
    "SASL_SSL SCRAM-SHA-256": lambda log, _: log.address("scram-256", mechanism="SCRAM-SHA-256"),
    "SASL_SSL PLAIN": lambda log, _: log.address("plain", mechanism="PLAIN"),
    "SASL_SSL OAUTHBEARER": lambda log, _: log.address(
        "bearer", mechanism="OAUTHBEARER", user="", password_file=secret(log.directory, "token", token("baton"))
    ),
    "SSL with a certificate": lambda log, authority: mtls(log, authority.issue("client")),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", KAFKA)
async def test_events_pass_through_kafka_over_tls(how: str, log: Log, authority: Authority) -> None:
    await round_trip(KAFKA[how](log, authority))


@pytest.mark.slow
async def test_kafka_that_cannot_be_trusted_or_refuses_us_is_named_without_secrets(
    log: Log, authority: Authority, stranger: Authority, broker: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = secret(log.directory, "wrong", WRONG)
    cases: list[tuple[LogAddress, str]] = [
        (log.address("x", password_file=wrong), "refuses the user: check event_log_user"),
        (log.address("x", mechanism="PLAIN", password_file=wrong), "refuses the user: check event_log_user"),
        (log.address("x", ca=stranger.file), "CERTIFICATE_VERIFY_FAILED"),
        (log.address("x", log.sasl.replace("127.0.0.1", "localhost")), "mismatch"),
        (mtls(log, stranger.issue("not-from-here")), "event_log_security"),
        (LogAddress(log.sasl + "x", 1), "event_log_security"),
        (log.address("x", f"kafka://{broker.bootstrap}/"), "event_log_security"),
    ]
    with caplog.at_level(logging.DEBUG):
        for address, words in cases:
            with pytest.raises(LogUnavailable) as failed:
                async with open_event_log(address):
                    raise AssertionError("it opened")
            text = f"{failed.value} {failed.value!r}"
            assert words in text, (words, text)
            assert PASSWORD not in text and WRONG not in text
    # A process mutes aiokafka's own log, which has the bytes of each request (`libs.telemetry.logs`).
    logged = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("aiokafka"))
    assert PASSWORD not in logged and WRONG not in logged
    assert PASSWORD not in repr(log.address("x"))


def test_kafka_settings_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    password = secret(tmp_path, "password", PASSWORD)
    ca = Authority(tmp_path).file
    cases = {
        KafkaSecurity("SASL_SSL"): "SASL_SSL needs event_log_sasl_mechanism and event_log_password_file",
        KafkaSecurity("SASL_SSL", "PLAIN", password_file=password): "event_log_user: it is not set; PLAIN needs it",
        KafkaSecurity("SSL", "PLAIN", USER, password): "SSL is without a user",
        KafkaSecurity(ca=ca): "PLAINTEXT is without TLS",
        KafkaSecurity("SASL_PLAINTEXT", "PLAIN", USER, password): r"would send the password to .*10\.0\.0\.1:9092",
        KafkaSecurity("SASL_SSL", "PLAIN", USER, tmp_path / "none", ca): "event_log_password_file: .* cannot be read",
    }
    for security, message in cases.items():
        with pytest.raises(TlsUnfit, match=message):
            KafkaAccess(security, "127.0.0.1:9092,10.0.0.1:9092")
    local = KafkaAccess(KafkaSecurity("SASL_PLAINTEXT", "PLAIN", USER, password), "127.0.0.1:9092")
    assert local.options()["sasl_plain_password"] == PASSWORD
    assert PASSWORD not in repr(local)
    write(password, b"another\n")
    assert local.options()["sasl_plain_password"] == "another"
    with pytest.raises(TlsUnfit, match=r"would send the password to 127\.example\.com"):
        KafkaAccess(KafkaSecurity("SASL_PLAINTEXT", "PLAIN", USER, password), "127.example.com:9092")


@pytest.fixture
def dsn(database: Postgres, authority: Authority) -> Callable[..., str]:
    def made(
        host: str = "127.0.0.1", ca: Path = authority.file, password: str = PASSWORD, mode: str = "verify-full"
    ) -> str:
        return f"postgresql://{USER}:{password}@{host}:{database.port}/secure?sslmode={mode}" + (
            f"&sslrootcert={ca}" if mode != "disable" else ""
        )

    if not database.execute("SELECT 1 FROM pg_database WHERE datname = 'secure'"):
        database.create_database("secure")
    return made


@pytest.mark.slow
async def test_postgres_is_used_over_tls_for_the_store_and_the_control_store(
    dsn: Callable[..., str], database: Postgres
) -> None:
    async with postgres.open_store(dsn(), SystemClock()), PostgresControlStore.open(dsn()) as control:
        assert (await control.load()).generation >= 0
        encrypted = "SELECT count(*), bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
        number, all_of_them = database.execute(f"{encrypted} WHERE usename = '{USER}'").split("|")
    assert int(number) >= 2 and all_of_them == "t"


@pytest.mark.slow
async def test_postgres_that_cannot_be_trusted_or_refuses_us_is_named_without_secrets(
    dsn: Callable[..., str], stranger: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    cases = {
        dsn(host="localhost"): "not valid for 'localhost'",
        dsn(ca=stranger.file): "CERTIFICATE_VERIFY_FAILED",
        dsn(password=WRONG): "password authentication failed",
        dsn(mode="disable"): "no pg_hba.conf entry .* no encryption",
    }
    for address, words in cases.items():
        with pytest.raises(StoreUnavailable) as failed:
            await postgres_schema.check(address)
        with pytest.raises(ControlUnavailable) as control_failed:
            async with PostgresControlStore.open(address):
                raise AssertionError("it opened")
        for error in (failed.value, control_failed.value):
            assert re.search(words, str(error)), (words, str(error))
            assert PASSWORD not in f"{error} {error!r}" and WRONG not in f"{error} {error!r}"
    assert PASSWORD not in caplog.text and WRONG not in caplog.text
    missing = dsn(ca=stranger.file.with_name("none.pem"))
    with pytest.raises(UnfitDatabase, match=r"sslrootcert in the database's address: .*none\.pem cannot be read"):
        await postgres_schema.check(missing)
    with pytest.raises(UnfitDatabase, match=r"sslrootcert in the database's address: .*none\.pem cannot be read"):
        async with PostgresControlStore.open(missing):
            raise AssertionError("it opened")


@pytest.fixture
def redis_url(lock_server: Redis) -> str:
    return f"rediss://{USER}@127.0.0.1:{lock_server.tls_port}/0"


@pytest.mark.slow
async def test_locks_are_held_over_tls_by_a_user_with_a_password(
    redis_url: str, directory: Path, authority: Authority
) -> None:
    password = secret(directory, "redis-password", WRONG)
    security = RedisSecurity(password, authority.file)
    async with RedisLocks.open(redis_url, security=security) as locks:
        with pytest.raises(LocksUnavailable, match="invalid username-password pair"):
            async with locks.hold("one", 1.0):
                raise AssertionError("it is held")
        # The operator corrects the file; the process is not started again.
        write(password, PASSWORD.encode())

        async def held() -> bool:
            try:
                async with locks.hold("one", 1.0):
                    return True
            except LocksUnavailable:
                return False

        await eventually(held)


@pytest.mark.slow
async def test_a_lock_server_that_cannot_be_trusted_or_refuses_us_is_named_without_secrets(
    redis_url: str, directory: Path, authority: Authority, stranger: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    password = secret(directory, "redis-right", PASSWORD)
    wrong = secret(directory, "redis-wrong", WRONG)
    trusted = RedisSecurity(password, authority.file)
    cases: list[tuple[str, RedisSecurity, str]] = [
        (redis_url, RedisSecurity(wrong, authority.file), "invalid username-password pair"),
        (redis_url, RedisSecurity(None, authority.file), "AuthenticationError"),
        (redis_url, RedisSecurity(password, stranger.file), "CERTIFICATE_VERIFY_FAILED"),
        (redis_url.replace("127.0.0.1", "localhost"), trusted, "not valid for 'localhost'"),
        (redis_url.replace("rediss", "redis"), RedisSecurity(password), "ConnectionError|TimeoutError"),
    ]
    for url, security, words in cases:
        async with RedisLocks.open(url, security=security) as locks:
            with pytest.raises(LocksUnavailable) as failed:
                async with locks.hold("one", 1.0):
                    raise AssertionError("it is held")
        text = f"{failed.value} {failed.value!r}"
        assert re.search(words, text), (words, text)
        assert PASSWORD not in text and WRONG not in text
    assert PASSWORD not in caplog.text and WRONG not in caplog.text
    with pytest.raises(TlsUnfit, match=r"redis: it begins with redis://, which is without TLS: write rediss://"):
        connection_options("redis://127.0.0.1:6379/0", RedisSecurity(ca=authority.file))
    with pytest.raises(TlsUnfit, match=r"redis_password_file: .* the address in redis has a password too"):
        connection_options("rediss://a:b@127.0.0.1:6379/0", RedisSecurity(password))
