"""Makes the secrets that docker-compose.yml mounts, those that are missing; what exists is left as it is.

python deploy/compose/make_secrets.py [DIRECTORY]

They belong to the volumes: the database keeps the password that it was made with. Only this user may enter the
directory, but each file can be read by anybody, because in a container another user reads it.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

DIRECTORY = Path(__file__).parent / "secrets"

_BYTES = 32


def make_secrets(directory: Path) -> list[Path]:
    """Returns the files that were made."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = [
        _write(directory / "token", f"{secrets.token_urlsafe(_BYTES)}\n"),
        # Without a line's end: it would become a part of the password.
        _write(directory / "postgres_password", secrets.token_urlsafe(_BYTES)),
    ]
    password = (directory / "postgres_password").read_text()
    address = f"postgresql://baton:{password}@postgres:5432/baton"
    made.append(_write(directory / "service_layer.toml", f'database = "{address}"\n'))
    return [file for file in made if file is not None]


def _write(file: Path, text: str) -> Path | None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
    except FileExistsError:
        return None
    with os.fdopen(descriptor, "w") as opened:
        os.fchmod(descriptor, 0o444)
        opened.write(text)
    return file


if __name__ == "__main__":
    for made in make_secrets(Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY):
        print(f"made {made}")
