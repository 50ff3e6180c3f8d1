"""A ring of keys comes from a private file, is read again when the file changes, and survives a broken one."""

import base64
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from libs.clock import ManualClock
from libs.eventlog.key_ring import KeyRing, KeyRingUnfit, open_key_ring
from libs.secret_file import LOOK_SECONDS, MAX_FILE_BYTES

ONE, TWO = b"1" * 32, b"2" * 40


def text_of(key: bytes) -> str:
    return base64.b64encode(key).decode()


def ring_text(sign: str = "one", **keys: bytes) -> str:
    lines = "".join(f'{name} = "{text_of(key)}"\n' for name, key in (keys or {"one": ONE}).items())
    return f'sign = "{sign}"\n[keys]\n{lines}'


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_ring_has_its_keys_and_the_one_that_signs(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.toml", ring_text("two", one=ONE, two=TWO))
    assert open_key_ring(path, ManualClock()).content == KeyRing("two", {"one": ONE, "two": TWO})


SECRET = text_of(b"this is the secret key of events")
UNFIT = {
    "not TOML": f'sign = "one"\n[keys]\none = "{SECRET}',
    "the field 'signs'": f'signs = "one"\n[keys]\none = "{SECRET}"',
    "a table keys": 'sign = "one"',
    "with 1 to 16 keys": 'sign = "one"\n[keys]\n',
    "sign is 'two', it must be": f'sign = "two"\n[keys]\none = "{SECRET}"',
    "sign is None": f'[keys]\none = "{SECRET}"',
    "the id 'a b' must be": f'sign = "a b"\n[keys]\n"a b" = "{SECRET}"',
    "key one must be base64 of at least 32": f'sign = "one"\n[keys]\none = "{text_of(ONE[:31])}"',
    "key one must be base64": f'sign = "one"\n[keys]\none = "{SECRET}!"',
    "key one must be base64 of": 'sign = "one"\n[keys]\none = 5',
    "one key under two ids": f'sign = "one"\n[keys]\none = "{SECRET}"\ntwo = "{SECRET}"',
    "more than": f"# {'x' * MAX_FILE_BYTES}",
}


@pytest.mark.parametrize("why", UNFIT)
def test_an_unfit_file_is_refused_without_a_word_of_its_keys(why: str, tmp_path: Path) -> None:
    path = write(tmp_path / "keys.toml", UNFIT[why])
    with pytest.raises(KeyRingUnfit) as refused:
        open_key_ring(path, ManualClock())
    assert why in refused.value.message and str(path) in refused.value.message
    assert SECRET not in refused.value.message


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are for this user only."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_file_that_is_missing_or_open_to_all_is_refused(tmp_path: Path, open_folder: Path) -> None:
    with pytest.raises(KeyRingUnfit, match="No such file"):
        open_key_ring(tmp_path / "none.toml", ManualClock())
    path = write(open_folder / "keys.toml", ring_text())
    path.chmod(0o604)
    with pytest.raises(KeyRingUnfit, match=f"chmod 600 {path}"):
        open_key_ring(path, ManualClock())


def test_a_changed_file_is_read_again_and_a_broken_one_leaves_the_last_good_ring(tmp_path: Path) -> None:
    clock = ManualClock()
    path = write(tmp_path / "keys.toml", ring_text())
    file = open_key_ring(path, clock)
    assert file.content.sign == "one"

    write(path, ring_text("two", one=ONE, two=TWO))
    assert file.content.sign == "one"
    clock.advance(LOOK_SECONDS)
    assert file.content == KeyRing("two", {"one": ONE, "two": TWO})

    write(path, "broken")
    clock.advance(LOOK_SECONDS)
    assert file.content.sign == "two"
    assert "not TOML" in file.trouble

    new = write(tmp_path / "new.toml", ring_text("two", two=TWO))
    os.replace(new, path)
    clock.advance(LOOK_SECONDS)
    assert (file.content, file.trouble) == (KeyRing("two", {"two": TWO}), "")

    path.unlink()
    clock.advance(LOOK_SECONDS)
    assert file.content.sign == "two"
    assert "No such file" in file.trouble


def test_a_file_that_is_unfit_at_the_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyRingUnfit):
        open_key_ring(write(tmp_path / "keys.toml", ""), ManualClock())
