"""Makes the secrets that docker-compose.yml mounts, those that are missing; what exists is left as it is.

python -m deploy.compose.make_secrets [DIRECTORY]

They belong to the volumes: the database keeps the password that it was made with. Certificates that expire soon are
made again; the processes read them without a restart, Kafka, PostgreSQL and Redis at their next start. Only this user
may enter the directory, but each file can be read by anybody, because in a container another user reads it. The key of
the certificate authority, `ca-key.pem`, is for this user alone and is mounted nowhere.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12

from libs.tls.making import Authority, Pair, write

DIRECTORY = Path(__file__).parent / "secrets"

ACCOUNT = "demo"
"""The account of the client's token."""
USER = "baton"
"""Our processes' user at Kafka, PostgreSQL and Redis."""
SERVICES = ("kafka", "postgres", "redis", "router", "service-layer", "simple-mcp")
"""Services with a certificate, by the name under which others call them."""

_BYTES = 32
_SHARED = 0o444
_LOCAL = ("localhost", "127.0.0.1")


def make_secrets(directory: Path) -> list[Path]:
    """Returns the files that were made, or made again."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = _contents(directory)
    for name in ("token", "client_token", "operator_token", "kafka_password", "postgres_password", "redis_password"):
        keep(directory / name, secrets.token_urlsafe(_BYTES))
    known = {file.name: file.read_text() for file in directory.iterdir() if file.suffix == ""}
    for name, text in _made_of(known).items():
        keep(directory / name, text)
    key = base64.b64encode(secrets.token_bytes(_BYTES)).decode()
    keep(directory / "event_keys.toml", f'sign = "1"\n\n[keys]\n1 = "{key}"\n')
    authority = Authority(directory)
    for name in SERVICES:
        pair = authority.issue(name, (name, *_LOCAL), _SHARED)
        if name == "kafka":
            _make_keystore(directory / "kafka.p12", pair, known["kafka_password"])
    return sorted(file for file, content in _contents(directory).items() if content != before.get(file))


def _made_of(known: Mapping[str, str]) -> dict[str, str]:
    """Files for one program each, from the passwords and tokens."""
    database = f"postgresql://{USER}:{known['postgres_password']}@postgres:5432/{USER}"
    verified = "sslmode=verify-full&sslrootcert=/run/secrets/ca.pem"
    kafka = known["kafka_password"]
    return {
        "service_layer.toml": f'database = "{database}?{verified}"\n',
        "clients.toml": token_entry("client", known["client_token"], f'accounts = ["{ACCOUNT}"]'),
        "operators.toml": token_entry("operator", known["operator_token"], 'roles = ["admin"]'),
        "kafka_jaas.conf": "KafkaServer {\n"
        f'  org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{kafka}";\n}};\n',
        # Anybody may ask whether it is there.
        "redis_users.acl": f"user default on nopass -@all +ping\nuser {USER} on >{known['redis_password']} ~* +@all\n",
    }


def token_entry(subject: str, token: str, rights: str) -> str:
    return f'[[token]]\nsubject = "{subject}"\nsha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n{rights}\n'


def _make_keystore(file: Path, pair: Pair, password: str) -> None:
    """Kafka's image takes a key only with a password, so not in PEM."""
    certificate, *chain = x509.load_pem_x509_certificates(pair.certificate.read_bytes())
    if file.exists():
        kept = pkcs12.load_pkcs12(file.read_bytes(), password.encode()).cert
        if kept is not None and kept.certificate == certificate:
            return
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(password.encode())
    made = pkcs12.serialize_key_and_certificates(b"kafka", key, certificate, chain, encryption)  # type: ignore[arg-type]
    write(file, made, _SHARED)


def _contents(directory: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in directory.iterdir()}


def keep(file: Path, text: str) -> None:
    """Without a line's end in a password: for some programs it would be a part of it."""
    if not file.exists():
        write(file, text.encode(), _SHARED)


if __name__ == "__main__":
    for made in make_secrets(Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY):
        print(f"made {made}")
