"""Numbers and foreign text, as people see them."""

import json
import os
import subprocess
import sys
from io import StringIO

import pytest
from rich.text import Text

from libs.text import plain, visible
from services.router.cli import show
from services.router.cli.show_events import event_screen

HOSTILE = "a\x1b[31m\x9b2J\u202eb\u2066c\u200bd\ufeff\x00\x7f"
SHOWN = r"a\x1b[31m\x9b2J\u202eb\u2066c\u200bd\ufeff\x00\x7f"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2.9273e-05, "0.000029"),
        (1e7, "10000000"),
        (2_592_000.0, "2592000"),
        (123_456.7, "123457"),
        (0.0, "0"),
        (-1e-9, "0"),
        (12.5, "12.5"),
        (99.9, "99.9"),
        (100, "100"),
        (1 / 3, "0.333"),
    ],
)
def test_a_number_is_shown_without_an_exponent(value: float, shown: str) -> None:
    assert plain(value) == shown


def test_characters_that_steer_a_terminal_or_reorder_text_become_escapes() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible("sandboxes/größe 沙箱\n") == "sandboxes/größe 沙箱\n"


def test_the_screen_and_json_show_no_such_character() -> None:
    screen = StringIO()
    console = show.console()
    console.file = screen
    console.print(Text(HOSTILE))
    assert screen.getvalue().rstrip() == SHOWN
    printed = show.as_json({"key": HOSTILE, "city": "Zürich"})
    assert visible(printed) == printed and "Zürich" in printed
    assert json.loads(printed)["key"] == HOSTILE


def test_an_event_with_hostile_content_is_shown_on_an_ascii_terminal() -> None:
    script = (
        "import sys\nfrom services.router import cli\nfrom services.router.cli import app, show, show_events\n"
        "app.tree = lambda _: lambda: show.show(show_events.event_screen(eval(sys.stdin.read())))\ncli.main()"
    )
    event = {
        "position": "3/1200",
        "time": "2026-01-01T00:00:00.000+00:00",
        "key": HOSTILE,
        "version": "0-1",
        "live": True,
        "owner": "A",
        "origin": "A",
        "trouble": "",
        "code": "WRONG",
        "code_trouble": HOSTILE,
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "bytes": 1,
        "schema_version": 2,
        "made_time": None,
        "served": [{"request_id": HOSTILE, "principal": "größe"}],
        "content": {"labels": {HOSTILE: "größe"}},
    }
    assert event_screen(event)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    found = subprocess.run(
        [sys.executable, "-c", script],
        input=ascii(event),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.isascii() and visible(found.stdout) == found.stdout
    assert r"gr\xf6\xdfe" in found.stdout
