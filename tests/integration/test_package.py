"""The wheel, installed beside nothing of this tree: it has all that the command and the three services need."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.documents import ROOT

SECONDS = 120.0


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files. The packages that it depends on are those of this environment."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    _run("git", "-C", str(ROOT), "checkout-index", "--all", f"--prefix={source}/", folder=folder)
    build = ("pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(source))
    _run(sys.executable, "-m", *build, folder=folder)
    (wheel,) = folder.glob("baton-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def _run(*command: str, folder: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("BATON_", "SIMPLE_", "SERVICE_"))}
    environment = own | ({"PYTHONPATH": path} if path else {})
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=not path
    )


def test_the_wheel_has_the_tracked_files_of_both_packages_and_no_others(installed: Path) -> None:
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "libs", "services"], capture_output=True, text=True, check=True
    )
    found = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert {name for name in found if ".dist-info/" not in name} == set(listed.stdout.split())
    assert any(name.endswith("licenses/LICENSE") for name in found)


@pytest.mark.parametrize("service", ["simple_mcp", "service_layer", "router"])
def test_each_service_starts_as_far_as_its_settings(installed: Path, tmp_path: Path, service: str) -> None:
    done = _run(sys.executable, "-m", f"services.{service}", folder=tmp_path, path=str(installed))
    assert (done.returncode, "event_log: it is not set" in done.stderr) == (2, True), done.stderr


def test_the_demo_has_its_database(installed: Path, tmp_path: Path) -> None:
    code = "from services.router.cli.demo.run import OLD_DATABASE as f; print(f, f.is_file())"
    done = _run(sys.executable, "-c", code, folder=tmp_path, path=str(installed))
    assert done.stdout == f"{installed / 'services/router/cli/demo/old_simple_mcp.db'} True\n", done.stderr
