"""Every story shows the core's behaviour. `pytest tests/transcripts --rewrite` writes them again, for review."""

from pathlib import Path

import pytest

from tests.transcripts.runner import play

STORIES = sorted(Path(__file__).parent.glob("*.txt"))


def test_there_are_stories() -> None:
    assert len(STORIES) >= 4


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_the_story_is_what_happens(path: Path, request: pytest.FixtureRequest) -> None:
    told = path.read_text()
    played = play(told)
    if request.config.getoption("--rewrite"):
        path.write_text(played)
        return
    assert played == told, "the core tells another story: run with --rewrite and review the difference"


def test_a_story_that_is_told_wrongly_is_noticed() -> None:
    assert play("> canary 5\n  1: OFF, canary 5 %\n") != "> canary 5\n  1: OFF, canary 5 %\n"
