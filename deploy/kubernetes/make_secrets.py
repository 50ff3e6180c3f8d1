"""Makes the missing credentials of the trial overlay. Existing ones are kept.

python -m deploy.kubernetes.make_secrets [DIRECTORY]

They belong to the volumes: a database keeps the password that it was made with.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.compose.make_secrets import ACCOUNT, USER, keep, token_entry

DIRECTORY = Path(__file__).parent / "overlays" / "trial" / "secrets"

_BYTES = 32
_NAMES = ("token", "client_token", "operator_token", "postgres_password", "control_password", "redis_password")


def make_secrets(directory: Path) -> list[Path]:
    """Returns the files that were made."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = set(directory.iterdir())
    for name in _NAMES:
        keep(directory / name, secrets.token_urlsafe(_BYTES))
    known = {name: (directory / name).read_text() for name in _NAMES}
    for name, text in _made_of(known).items():
        keep(directory / name, text)
    return sorted(set(directory.iterdir()) - before)


def _made_of(known: Mapping[str, str]) -> dict[str, str]:
    """Files from the passwords and tokens."""
    return {
        "service_layer.toml": f'database = "{_database(known["postgres_password"], "postgres")}"\n',
        "router.toml": f'control_store = "{_database(known["control_password"], "control-postgres")}"\n',
        "clients.toml": token_entry("client", known["client_token"], f'accounts = ["{ACCOUNT}"]'),
        "operators.toml": token_entry("operator", known["operator_token"], 'roles = ["admin"]'),
        # Anybody may ask whether it is there.
        "redis_users.acl": f"user default on nopass -@all +ping\nuser {USER} on >{known['redis_password']} ~* +@all\n",
    }


def _database(password: str, host: str) -> str:
    return f"postgresql://{USER}:{password}@{host}:5432/{USER}"


if __name__ == "__main__":
    for made in make_secrets(Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY):
        print(f"made {made}")
