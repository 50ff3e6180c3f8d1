"""Files with tokens and names of certificates: their form, their permissions and their changes."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from libs.clock import ManualClock
from libs.identity.errors import TokenUnknown
from libs.identity.mtls import read_names
from libs.identity.principal import Role
from libs.identity.tokens import TokenFile, read_tokens
from libs.secret_file import LOOK_SECONDS, UnfitFile
from tests.contracts.identity_adapters import ANN, TOKENS, bearer, write, write_tokens

SECRET = "a-secret-token-0000"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[token]]\n", "give either token or sha256"),
        (f'[[token]]\nsubject = "a"\ntoken = "{SECRET}"\nsha256 = "00"\n', "give either token or sha256"),
        (f'[[token]]\ntoken = "{SECRET}"\n', "subject: give the name"),
        ('[[token]]\nsubject = "a"\ntoken = "short"\n', "at least 16"),
        (f'[[token]]\nsubject = "a"\ntoken = "{SECRET} "\n', "without spaces"),
        ('[[token]]\nsubject = "a"\nsha256 = "00"\n', "64 hexadecimal digits"),
        (f'[[token]]\nsubject = "a"\ntoken = "{SECRET}"\nroles = ["root"]\n', "'root' is not valid"),
        (f'[[token]]\nsubject = "a"\ntoken = "{SECRET}"\naccounts = "acme"\n', "a list of texts"),
        (f'[[token]]\nsubject = "a"\ntoken = "{SECRET}"\naccount = "acme"\n', "'account'"),
        (f'token = "{SECRET}"\n', "only entries [[token]]"),
        (2 * f'[[token]]\nsubject = "a"\ntoken = "{SECRET}"\n', "number 2: the token is the same"),
        ("[[token", ""),
    ],
)
def test_a_wrong_entry_is_named_and_its_token_is_not_shown(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the text is compared below
        read_tokens(text.encode())
    assert problem in str(refused.value)
    assert SECRET not in str(refused.value)


def test_a_hash_stands_for_its_token() -> None:
    digest = hashlib.sha256(SECRET.encode())
    text = f'[[token]]\nsubject = "ci"\nsha256 = "{digest.hexdigest().upper()}"\nroles = ["admin"]\n'
    known, principal = read_tokens(text.encode())[digest.digest()]
    assert (known, principal.subject, principal.has(Role.ADMIN)) == (digest.digest(), "tokens:ci", True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[certificate]]\n", "name: give"),
        (2 * '[[certificate]]\nname = "a"\n', "number 2: name: 'a' has another entry"),
        ('[[certificate]]\nname = "a"\nroles = [1]\n', "roles: give a list of texts"),
    ],
)
def test_a_wrong_name_is_named(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the text is compared below
        read_names(text.encode())
    assert problem in str(refused.value)


async def test_a_changed_file_is_read_again_and_a_wrong_one_changes_nothing(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "tokens.toml")
    clock = ManualClock()
    one = TokenFile(path, clock)
    old = await one.authenticate(bearer(TOKENS[ANN]))
    path.write_text("[[token")
    clock.advance(LOOK_SECONDS)
    assert await one.authenticate(bearer(TOKENS[ANN])) == old
    # As a mounted secret changes: another file takes the name.
    write(tmp_path / "next", f'[[token]]\nsubject = "new"\ntoken = "{SECRET}"\n').rename(path)
    clock.advance(LOOK_SECONDS)
    assert (await one.authenticate(bearer(SECRET))).subject == "tokens:new"
    with pytest.raises(TokenUnknown):
        await one.authenticate(bearer(TOKENS[ANN]))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are for this user only."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.mark.parametrize("mode", [0o604, 0o602])
def test_a_file_that_every_user_can_read_or_change_is_refused(mode: int, open_folder: Path) -> None:
    path = write_tokens(open_folder / "tokens.toml")
    path.chmod(mode)
    with pytest.raises(UnfitFile, match="chmod 600"):
        TokenFile(path, ManualClock())
