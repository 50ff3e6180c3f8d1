"""A real Apache Kafka: one KRaft node that is broker and controller, on loopback."""

import asyncio
import base64
import signal
import string
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, UnknownTopicOrPartitionError

from libs.eventlog.kafka_client import wait_for_controller
from libs.proving.servers import locate
from libs.proving.servers.errors import ServersError
from libs.proving.servers.ports import free_port, is_open
from libs.proving.servers.process import Command, ServerProcess
from libs.proving.servers.secure import MoreListeners

_FORMAT_SECONDS = 60.0
_START_SECONDS = 90.0
_READY_SECONDS = 60.0
_ATTEMPT_SECONDS = 5.0
_RETRY_SECONDS = 0.1
_LEADER_POLL_SECONDS = 0.02
_PROBE_TOPIC = "servers.ready"
_JVM = (
    "-Xmx384m",
    "-XX:+UseSerialGC",
    # A start takes half of the processor time with the fast compiler alone, and without verifying the classes.
    "-XX:TieredStopAtLevel=1",
    "-XX:+UnlockDiagnosticVMOptions",
    "-XX:-BytecodeVerificationRemote",
    "-Djava.awt.headless=true",
)


class Kafka:
    """One Kafka broker with its data in `directory`/data. start, stop, kill and restart block; not thread-safe.

    `kill` and `restart` keep data and port. A broker with an open port may still refuse work, so `start` and `restart`
    return only after a record was produced, and `ready` waits for the same after a pause.
    """

    def __init__(
        self, directory: Path, secure: MoreListeners | None = None, *, write_archive: Path | None = None
    ) -> None:
        """`secure`: more listeners. `write_archive`: write an archive of the loaded classes to this file at the end."""
        self._secure = secure
        self.directory = directory.resolve()
        self.port = free_port()
        self._controller_port = free_port()
        self._java = locate.java()
        self._jars = locate.kafka_jars()
        self._data = self.directory / "data"
        self._properties = self.directory / "server.properties"
        written = () if write_archive is None else (f"-XX:ArchiveClassesAtExit={write_archive}",)
        self.process = ServerProcess(
            Command(
                name="kafka",
                argv=self._jvm(*_JVM, *written, "-cp", f"{self._jars}/*", "kafka.Kafka", str(self._properties)),
                log=self.directory / "kafka.log",
                cwd=self.directory,
            )
        )

    def __repr__(self) -> str:
        return f"<Kafka {self.bootstrap} {self.process!r}>"

    @property
    def bootstrap(self) -> str:
        """Bootstrap server for clients, host:port."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Format the data directory if it is missing, start, and wait until a record can be produced.

        Raises ServerFailed with the end of the log. Must not be called in a running event loop: use a thread there.
        """
        if not self._data.exists():
            self._format()
        self.process.start()
        self.process.wait_until(lambda: is_open(self.port), _START_SECONDS, f"port {self.port} is open")
        # A separate event loop in a separate thread does not disturb the loop of the caller's thread.
        with ThreadPoolExecutor(1) as executor:
            executor.submit(asyncio.run, self.ready()).result()

    def stop(self) -> None:
        """Shut down gracefully."""
        self.process.stop(signal.SIGTERM)

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal to the broker; after SIGKILL it is gone when this returns."""
        self.process.kill(signum)

    def restart(self) -> None:
        """Start again on the same data and port; a running broker is stopped first."""
        self.stop()
        self.start()

    async def ready(self, timeout_seconds: float = _READY_SECONDS) -> None:
        """Wait until a record can be produced. Raises ServerFailed with the end of the log after the timeout."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                async with asyncio.timeout(_ATTEMPT_SECONDS):
                    await self._produce_probe()
                return
            except (KafkaError, TimeoutError) as error:
                if not self.process.running:
                    raise self.process.failure(
                        f"ended with code {self.process.exit_code} before a record could be produced"
                    ) from error
                if time.monotonic() > deadline:
                    raise self.process.failure(
                        f"no record could be produced within {timeout_seconds:g} s: {error!r}"
                    ) from error
                await asyncio.sleep(_RETRY_SECONDS)

    async def create_topic(self, name: str, partitions: int, config: Mapping[str, str] | None = None) -> None:
        """Create a topic and wait until every partition has a leader.

        Raises ServersError if the topic exists, ServerFailed if it is not usable in time.
        """
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            async with asyncio.timeout(_READY_SECONDS):
                await admin.start()
                await wait_for_controller(admin)
                answer = await admin.create_topics(
                    [NewTopic(name, partitions, replication_factor=1, topic_configs=dict(config or {}))]
                )
                _raise_topic_error(name, answer.topic_errors[0])
                await _await_leaders(admin, name, partitions)
        except TimeoutError as error:
            raise self.process.failure(f"topic {name!r} was not usable within {_READY_SECONDS:g} s") from error
        finally:
            await admin.close()

    async def delete_topic(self, name: str) -> None:
        """Remove a topic, if it exists."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            async with asyncio.timeout(_READY_SECONDS):
                await admin.start()
                await wait_for_controller(admin)
                await admin.delete_topics([name])
        except UnknownTopicOrPartitionError:
            pass
        except TimeoutError as error:
            raise self.process.failure(f"topic {name!r} was not deleted within {_READY_SECONDS:g} s") from error
        finally:
            await admin.close()

    async def _produce_probe(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, acks="all")
        try:
            await admin.start()
            await wait_for_controller(admin)
            await admin.create_topics([NewTopic(_PROBE_TOPIC, 1, replication_factor=1)])
            await producer.start()
            await producer.send_and_wait(_PROBE_TOPIC, b"ready")
        finally:
            await producer.stop()
            await admin.close()

    def _format(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        template = string.Template((locate.KAFKA_DEPLOY / "server.properties.template").read_text())
        secure = self._secure
        properties = template.substitute(
            port=self.port,
            controller_port=self._controller_port,
            data=self._data,
            more_listeners=secure.listeners if secure else "",
        )
        self._properties.write_text(properties + (secure.properties(self.directory) if secure else ""))
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        tool = ServerProcess(
            Command(
                name="kafka storage format",
                argv=self._jvm(
                    *(*_JVM, "-cp", f"{self._jars}/*", "kafka.tools.StorageTool"),
                    # One word: an id may begin with "-" and would be taken for an option.
                    *("format", f"--cluster-id={cluster}", "-c", str(self._properties)),
                    *(secure.format_arguments if secure else ()),
                ),
                log=self.directory / "format.log",
                cwd=self.directory,
            )
        )
        tool.start()
        tool.wait_for_exit(_FORMAT_SECONDS)

    def _jvm(self, *arguments: str) -> list[str | Path]:
        archive = locate.KAFKA_ARCHIVE
        # With the archive a start takes half of the processor time. Java ignores one of another version or other jars.
        shared = (f"-XX:SharedArchiveFile={archive}",) if archive.exists() else ()
        return [self._java, f"-Dlog4j2.configurationFile={locate.KAFKA_DEPLOY / 'log4j2.xml'}", *shared, *arguments]


def _raise_topic_error(name: str, answer: tuple[object, ...]) -> None:
    code, message = answer[1], answer[2]
    if code == TopicAlreadyExistsError.errno:
        raise ServersError(f"topic {name!r} exists already")
    if code != 0:
        raise ServersError(f"topic {name!r} could not be made: error {code}: {message}")


async def _await_leaders(admin: AIOKafkaAdminClient, name: str, partitions: int) -> None:
    while True:
        found = (await admin.describe_topics([name]))[0]
        led = [part for part in found["partitions"] if part["error_code"] == 0 and part["leader"] >= 0]
        if found["error_code"] == 0 and len(led) == partitions:
            return
        await asyncio.sleep(_LEADER_POLL_SECONDS)
