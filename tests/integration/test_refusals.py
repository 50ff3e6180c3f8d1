"""Errors that stop the start of a real process, with their remedies: a port in use, a database of a newer version."""

from __future__ import annotations

import shutil
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest

from libs.proving.servers.errors import ServerFailed
from libs.proving.trial.world import World
from tests.fixtures.make_old_database import FILE
from tests.integration.processes import run_to_end

NEWER = 9999


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """One that has run before and rests now."""
    made = World.embedded(tmp_path)
    shutil.copyfile(FILE, tmp_path / "a.db")
    try:
        for name in made.names:
            await made.start(name)
        await made.stop_all()
        yield made
    finally:
        await made.stop_all()


async def refusal(world: World, name: str) -> str:
    """The end of the log of a process that does not start."""
    log = world.nodes[name].process.command.log
    before = len(log.read_text())
    with pytest.raises(ServerFailed, match="ended with code 1"):
        await world.start(name)
    said = log.read_text()[before:]
    assert "Traceback" not in said, said
    return said


async def test_a_port_in_use_stops_every_process_and_is_named(world: World) -> None:
    for name in world.names:
        address = world.nodes[name].private
        with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
            said = await refusal(world, name)
        assert f"cannot listen on {address}" in said
        assert "stop the process that uses it or set another address" in said


async def test_a_file_of_a_newer_version_stops_every_process(world: World, tmp_path: Path) -> None:
    for name, file in (("a", "a.db"), ("b-1", "b.db"), ("router-1", "control.db")):
        with closing(sqlite3.connect(tmp_path / file)) as connection:
            connection.execute(f"PRAGMA user_version = {NEWER}")
        said = await refusal(world, name)
        assert str(NEWER) in said
        assert "newer" in said


async def test_a_database_of_a_newer_version_stops_the_new_service(tmp_path: Path, postgres_dsn: str) -> None:
    settings = {"database": postgres_dsn, "event_log": f"sqlite:///{tmp_path}/log.db"}
    code, errors = await run_to_end("service_layer", settings, "migrate")
    assert code == 0, errors
    connection = await asyncpg.connect(postgres_dsn)
    try:
        await connection.execute("UPDATE alembic_version SET version_num = $1", f"v{NEWER}")
    finally:
        await connection.close()
    code, errors = await run_to_end("service_layer", settings)
    assert code == 1
    assert str(NEWER) in errors
    assert "Traceback" not in errors
