"""The servers that tests and demo start: they work, they can be paused and killed, and they never outlive us."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio as redis
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from libs.proving.servers import __main__ as servers_main
from libs.proving.servers import locate, tree
from libs.proving.servers.errors import ServerFailed, ServerMissing, ServersError
from libs.proving.servers.kafka import Kafka
from libs.proving.servers.ports import free_port
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.process import Command, ServerProcess
from libs.proving.servers.redis import Redis
from libs.proving.servers.stack import running_stack
from tests.waiting import NotReached, eventually

PROJECT_ROOT = Path(__file__).parents[2]


async def produce(kafka: Kafka, topic: str, value: bytes) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all")
    await producer.start()
    try:
        await asyncio.wait_for(producer.send_and_wait(topic, value, partition=0), 10)
    finally:
        await producer.stop()


async def first_value(kafka: Kafka, topic: str) -> bytes:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        record = await asyncio.wait_for(consumer.getone(), 10)
        return bytes(record.value)
    finally:
        await consumer.stop()


async def query(dsn: str, statement: str) -> object:
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        return await connection.fetchval(statement, timeout=10)
    finally:
        await connection.close()


async def ping(server: Redis) -> bool:
    client = redis.from_url(server.url, socket_timeout=5)
    try:
        return bool(await client.ping())
    finally:
        await client.aclose()


def states(server: ServerProcess) -> set[str]:
    """The scheduler states of a server and its descendants, e.g. {"S", "R"} or {"T"}."""
    assert server.pid is not None
    pids = [server.pid, *(process.pid for process in tree.descendants(server.pid))]
    return {Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] for pid in pids}


async def test_a_record_survives_the_death_of_the_broker(kafka: Kafka, kafka_topic: str) -> None:
    await produce(kafka, kafka_topic, b"kept")
    kafka.kill(signal.SIGKILL)
    assert not kafka.process.running
    await asyncio.to_thread(kafka.restart)
    assert await first_value(kafka, kafka_topic) == b"kept"


async def test_a_committed_row_survives_the_death_of_postgres(postgres: Postgres, postgres_dsn: str) -> None:
    await query(postgres_dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    held = await asyncpg.connect(postgres_dsn)
    assert postgres.process.pid is not None
    family = tree.descendants(postgres.process.pid)
    postgres.kill(signal.SIGKILL)
    assert len(family) > 1
    assert not any(process.lives() for process in family)
    held.terminate()
    postgres.restart()
    assert await query(postgres_dsn, "SELECT n FROM kept") == 7


async def test_redis_comes_back_empty_on_the_same_port(redis_server: Redis) -> None:
    url = redis_server.url
    assert await ping(redis_server)
    redis_server.kill(signal.SIGKILL)
    redis_server.restart()
    assert redis_server.url == url
    assert await ping(redis_server)


@pytest.mark.parametrize("name", ["kafka", "postgres", "redis_server"])
async def test_a_paused_server_stands_still_with_all_its_children(
    name: str, request: pytest.FixtureRequest, kafka: Kafka, postgres: Postgres, redis_server: Redis
) -> None:
    server: Kafka | Postgres | Redis = request.getfixturevalue(name)
    server.kill(signal.SIGSTOP)
    try:
        await eventually(lambda: states(server.process) == {"T"}, what="every process is stopped")
    finally:
        server.kill(signal.SIGCONT)
    await eventually(lambda: "T" not in states(server.process), what="every process runs again")
    if isinstance(server, Kafka):
        await server.ready()
    elif isinstance(server, Postgres):
        assert await query(server.dsn, "SELECT 1") == 1
    else:
        assert await ping(server)


async def test_postgres_is_durable_and_takes_200_connections(postgres: Postgres) -> None:
    assert await query(postgres.dsn, "SHOW fsync") == "on"
    assert await query(postgres.dsn, "SHOW synchronous_commit") == "on"
    assert await query(postgres.dsn, "SHOW max_connections") == "200"


async def test_each_test_has_a_database_and_a_topic_of_its_own(
    postgres: Postgres, postgres_dsn: str, kafka: Kafka, kafka_topic: str
) -> None:
    assert await query(postgres_dsn, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    with pytest.raises(ServersError, match="exists already"):
        await kafka.create_topic(kafka_topic, 1)


async def test_a_database_can_be_copied_from_a_template(postgres: Postgres, postgres_dsn: str) -> None:
    await query(postgres_dsn, "CREATE TABLE copied AS SELECT 3 AS n")
    template = postgres_dsn.rsplit("/", 1)[1]
    dsn = postgres.create_database(f"{template}_copy", template=template)
    try:
        assert await query(dsn, "SELECT n FROM copied") == 3
    finally:
        postgres.drop_database(f"{template}_copy")


STARTER = """
import sys, time
from pathlib import Path
from libs.proving.servers.process import Command, ServerProcess

server = ServerProcess(Command("parent", ["/bin/sh", "-c", "sleep 600 & sleep 600"], log=Path(sys.argv[1])))
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""


async def test_servers_die_with_their_starter_even_if_it_is_killed(tmp_path: Path) -> None:
    starter = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", STARTER, str(tmp_path / "log")), stdout=asyncio.subprocess.PIPE, cwd=PROJECT_ROOT
    )
    try:
        assert starter.stdout is not None
        pid = int(await asyncio.wait_for(starter.stdout.readline(), 20))
        family = await eventually(lambda: family_of(pid, size=3), what="the server and its two children")
    finally:
        starter.kill()
        await starter.communicate()
    try:
        await eventually(lambda: not any(process.lives() for process in family), what="all of them are gone")
    finally:
        for process in family:
            process.send(signal.SIGKILL)


def family_of(pid: int, size: int) -> list[tree.Process]:
    root = tree.find(pid)
    found = [] if root is None else [root, *tree.descendants(pid)]
    return found if len(found) == size else []


async def test_the_whole_stack_runs_for_the_time_of_a_block() -> None:
    with running_stack() as stack:
        assert await query(stack.postgres.dsn, "SELECT 1") == 1
        assert await ping(stack.redis)
        await stack.kafka.ready()
        servers = (stack.kafka, stack.postgres, stack.redis)
        assert all(server.process.running for server in servers)
    assert not any(server.process.running for server in servers)
    assert not any(server.directory.parent.exists() for server in servers)


def test_a_servers_port_is_none_that_an_outgoing_connection_could_be_given() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = [free_port() for _ in range(20)]
    assert len(set(ports)) == len(ports)
    assert max(ports) < max(first, 32768)


def test_two_processes_never_take_the_same_port() -> None:
    # Few ports are left to choose from, so that without the lock both processes take the same one within a few tries.
    program = (
        "import sys, libs.proving.servers.ports as ports; ports._FIRST = ports._first_ephemeral_port() - 40;"
        " print(*(ports.free_port() for _ in range(12)), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        lines = [process.stdout.readline() for process in processes if process.stdout]
    finally:
        for process in processes:
            process.communicate("")
    first, second = (set(line.split()) for line in lines)
    assert len(first) == len(second) == 12
    assert not first & second


def test_a_server_that_ends_at_once_shows_its_log(tmp_path: Path) -> None:
    command = Command("failing", ["/bin/sh", "-c", "echo out of luck; exit 3"], log=tmp_path / "failing.log")
    server = ServerProcess(command)
    server.start()
    with pytest.raises(ServerFailed, match=r"(?s)failing: ended with code 3 before it is up.*out of luck"):
        server.wait_until(lambda: False, 10, "it is up")


def test_a_server_that_is_never_ready_shows_its_log(tmp_path: Path) -> None:
    command = Command("slow", ["/bin/sh", "-c", "echo still loading; exec sleep 600"], log=tmp_path / "slow.log")
    server = ServerProcess(command)
    server.start()
    try:
        server.wait_until(lambda: "loading" in server.log_tail(), 10, "it has begun")
        with pytest.raises(ServerFailed, match=r"(?s)slow: not so after 0.1 s: it is up.*still loading"):
            server.wait_until(lambda: False, 0.1, "it is up")
    finally:
        server.kill()


def test_a_paused_server_can_be_stopped_in_order(tmp_path: Path) -> None:
    script = "trap 'echo tidied up; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    server = ServerProcess(Command("paused", ["/bin/sh", "-c", script], log=tmp_path / "paused.log"))
    server.start()
    server.wait_until(lambda: "ready" in server.log_tail(), 10, "its trap is set")
    server.kill(signal.SIGSTOP)
    server.stop()
    assert server.exit_code == 0
    assert "tidied up" in server.log_tail()


def test_what_cannot_be_got_is_named_together_with_the_way_to_get_it(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "libs.proving.servers"],
        cwd=PROJECT_ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert "no program redis-server on PATH. Debian: apt-get install redis-server" in result.stderr
    assert "no program java on PATH. Debian: apt-get install default-jre-headless" in result.stderr


def test_chromium_and_the_tools_for_manifests_may_be_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for look_up in (
        locate.postgres_bin,
        locate.pgbouncer,
        locate.redis_server,
        locate.java,
        locate.go,
        locate.kafka_jars,
    ):
        monkeypatch.setattr(locate, look_up.__name__, lambda: Path())
    monkeypatch.setattr(locate, "KAFKA_ARCHIVE", Path())
    monkeypatch.setattr(locate, "_CHROMIUM_PROGRAMS", ())
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert servers_main.main() == 0
    said = capsys.readouterr().err
    assert "no program chromium on PATH. Debian: apt-get install chromium" in said
    for module in (locate.KUSTOMIZE_MODULE, locate.KUBECONFORM_MODULE):
        assert f"go install {module}" in said


def test_postgres_names_the_folder_that_its_user_may_not_enter(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root starts PostgreSQL as another user")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ServersError, match=r"may not enter .*\(mode 700\): give a directory"):
        Postgres(closed / "postgres").start()


@pytest.mark.parametrize(
    ("look_up", "advice"),
    [
        (locate.redis_server, "apt-get install redis-server"),
        (locate.java, "apt-get install default-jre-headless"),
        (locate.maven, "apt-get install maven"),
        (locate.chromium, "apt-get install chromium"),
        (locate.postgres_bin, "apt-get install postgresql"),
        (locate.kustomize, "go install sigs.k8s.io/kustomize"),
        (locate.kubeconform, "go install github.com/yannh/kubeconform"),
        (locate.kafka_jars, "mvn -q -B -f .*pom.xml dependency:copy-dependencies"),
    ],
)
def test_a_missing_server_says_how_to_get_it(
    look_up: Callable[[], object], advice: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(locate, "_DEBIAN_POSTGRES", tmp_path)
    monkeypatch.setattr(locate, "KAFKA_JARS", tmp_path)
    monkeypatch.setattr(locate, "KUBERNETES_BIN", tmp_path)
    with pytest.raises(ServerMissing, match=rf"missing.*{advice}"):
        look_up()


async def test_a_condition_that_never_holds_shows_its_last_value() -> None:
    with pytest.raises(NotReached, match=r"the answer: not reached within .* s; last value: 0"):
        await eventually(lambda: 0, timeout_seconds=0.05, what="the answer")
