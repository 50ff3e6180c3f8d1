"""Validation of request fields. Each check raises InvalidField with the field, its value and the expected form."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from google.protobuf.duration_pb2 import Duration

from libs.errors import Hidden, InvalidField
from libs.ownership.limits import MAX_KEY_BYTES
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.sandboxes.transitions import NUMBERS

COLLECTION = "sandboxes/"

MAX_IMAGE_CHARACTERS = 512
MAX_COMMAND_ITEMS = 128
MAX_COMMAND_BYTES = 4 * 1024
"""Per item."""
MAX_ENV = 256
MAX_ENV_NAME_CHARACTERS = 256
MAX_ENV_VALUE_BYTES = 32 * 1024
MAX_LABELS = 64
MAX_LABEL_CHARACTERS = 63
MAX_ANNOTATION_KEY_CHARACTERS = 253
MAX_ANNOTATIONS_BYTES = 256 * 1024
"""All keys and values together."""
MAX_ACCOUNT_CHARACTERS = 64
MAX_CPU_MILLIS = 1_000_000
MAX_MEMORY_MIB = 16 * 1024 * 1024
MAX_TIMEOUT_SECONDS = 30 * 24 * 3600

_ID = r"[a-z0-9][a-z0-9-]{0,62}"
_ID_PATTERN = re.compile(_ID)
_NEW_NAME_PATTERN = re.compile(COLLECTION + _ID)
_UUID_PATTERN = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_ETAG_PATTERN = re.compile(r'"[0-9]{1,19}-[0-9]{1,19}"')
_ACCOUNT_PATTERN = re.compile(rf"[A-Za-z0-9._@-]{{1,{MAX_ACCOUNT_CHARACTERS}}}")
_LABEL_KEY_PATTERN = re.compile(rf"[a-z0-9._/-]{{1,{MAX_LABEL_CHARACTERS}}}")
_LABEL_VALUE_PATTERN = re.compile(rf"[a-z0-9._/-]{{0,{MAX_LABEL_CHARACTERS}}}")
_ENV_NAME_PATTERN = re.compile(rf"[A-Za-z_][A-Za-z0-9_]{{0,{MAX_ENV_NAME_CHARACTERS - 1}}}")
_SPACE_OR_CONTROL = re.compile(r"[\s\x00-\x1f\x7f-\x9f]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_ID_RULE = 'an id has 1 to 63 characters of a-z, 0-9 and "-" and starts with a letter or digit'


def _matches(pattern: re.Pattern[str], value: str, field: str, expected: str) -> None:
    if pattern.fullmatch(value) is None:
        raise InvalidField(field, value, expected)


def check_id(value: str, field: str = "sandbox_id") -> None:
    _matches(_ID_PATTERN, value, field, _ID_RULE)


def check_name(value: str, field: str = "name") -> None:
    """Check the name of a sandbox that may exist.

    The old service accepted any text as an id, so such sandboxes exist and every call must reach them. New names follow
    `check_new_name`.
    """
    size = len(value.encode())
    if not value.startswith(COLLECTION) or value == COLLECTION or size > MAX_KEY_BYTES or "\0" in value:
        expected = f'write it as "{COLLECTION}" and an id, at most {MAX_KEY_BYTES} bytes together, no NUL character'
        raise InvalidField(field, value, expected)


def check_new_name(value: str, field: str = "name") -> None:
    """Check the name of a sandbox that a write would create."""
    _matches(_NEW_NAME_PATTERN, value, field, f'write it as "{COLLECTION}" and an id; {_ID_RULE}')


def canonical_request_id(value: str, field: str = "request_id") -> str:
    """Check a request id and return it in lower case, as stores keep it."""
    canonical = value.lower()
    if _UUID_PATTERN.fullmatch(canonical) is None:
        raise InvalidField(field, value, "a UUID such as 123e4567-e89b-42d3-a456-426614174000")
    return canonical


def check_etag(value: str, field: str) -> None:
    """Check the form of an etag. An empty one is valid: the call is unconditional."""
    if value:
        _matches(_ETAG_PATTERN, value, field, "give back the etag of a former answer as it was, quotes included")


def check_account(value: str, field: str = "sandbox.account") -> None:
    expected = f"required: 1 to {MAX_ACCOUNT_CHARACTERS} characters of A-Z, a-z, 0-9 and . _ @ -"
    _matches(_ACCOUNT_PATTERN, value, field, expected)


def check_label(key: str, value: str, field: str) -> None:
    allowed = f"{MAX_LABEL_CHARACTERS} characters of a-z, 0-9 and . _ / -"
    _matches(_LABEL_KEY_PATTERN, key, f"{field} key", f"1 to {allowed}")
    _matches(_LABEL_VALUE_PATTERN, value, f"{field}[{key!r}]", f"at most {allowed}")


def check_state(sandbox: Sandbox) -> None:
    """Check that the state is given and known. Transitions are checked in `transitions`."""
    if sandbox.state not in NUMBERS.values():
        expected = "one of " + ", ".join(f"STATE_{name} ({number})" for name, number in NUMBERS.items())
        raise InvalidField("sandbox.state", int(sandbox.state), expected)


def check_labels(sandbox: Sandbox) -> None:
    _check_count("sandbox.labels", sandbox.labels, MAX_LABELS)
    for key, value in sandbox.labels.items():
        check_label(key, value, "sandbox.labels")


def check_annotations(sandbox: Sandbox) -> None:
    size = 0
    for key, value in sandbox.annotations.items():
        if not 0 < len(key) <= MAX_ANNOTATION_KEY_CHARACTERS or _CONTROL.search(key):
            expected = f"1 to {MAX_ANNOTATION_KEY_CHARACTERS} characters, no control characters"
            raise InvalidField("sandbox.annotations key", key, expected)
        _check_no_nul(value, f"sandbox.annotations[{key!r}]", secret=True)
        size += len(key.encode()) + len(value.encode())
    if size > MAX_ANNOTATIONS_BYTES:
        expected = f"at most {MAX_ANNOTATIONS_BYTES} bytes, keys and values of all together"
        raise InvalidField("sandbox.annotations", f"{size} bytes", expected)


def check_image(sandbox: Sandbox) -> None:
    image = sandbox.spec.image
    if not 0 < len(image) <= MAX_IMAGE_CHARACTERS or _SPACE_OR_CONTROL.search(image):
        expected = f"required: 1 to {MAX_IMAGE_CHARACTERS} characters without spaces and control characters"
        raise InvalidField("sandbox.spec.image", image, expected)


def check_command(sandbox: Sandbox) -> None:
    _check_count("sandbox.spec.command", sandbox.spec.command, MAX_COMMAND_ITEMS)
    for position, item in enumerate(sandbox.spec.command):
        _check_text(item, f"sandbox.spec.command[{position}]", MAX_COMMAND_BYTES)


def check_env(sandbox: Sandbox) -> None:
    _check_count("sandbox.spec.env", sandbox.spec.env, MAX_ENV)
    for name, value in sandbox.spec.env.items():
        expected = f"1 to {MAX_ENV_NAME_CHARACTERS} letters, digits and _, no digit first"
        _matches(_ENV_NAME_PATTERN, name, "sandbox.spec.env key", expected)
        _check_text(value, f"sandbox.spec.env[{name!r}]", MAX_ENV_VALUE_BYTES, secret=True)


def check_cpu_millis(sandbox: Sandbox) -> None:
    _check_range("sandbox.spec.cpu_millis", sandbox.spec.cpu_millis, MAX_CPU_MILLIS)


def check_memory_mib(sandbox: Sandbox) -> None:
    _check_range("sandbox.spec.memory_mib", sandbox.spec.memory_mib, MAX_MEMORY_MIB)


def check_timeout(sandbox: Sandbox) -> None:
    timeout: Duration = sandbox.spec.timeout
    within = 0 <= timeout.nanos < 10**9 and timeout.seconds >= 0
    if not within or timeout.seconds + timeout.nanos / 1e9 > MAX_TIMEOUT_SECONDS:
        value = f"{timeout.seconds} s {timeout.nanos} ns"
        raise InvalidField("sandbox.spec.timeout", value, f"0 to {MAX_TIMEOUT_SECONDS} seconds, nanos below 10^9")


SPEC_CHECKS: Mapping[str, Callable[[Sandbox], None]] = {
    "image": check_image,
    "command": check_command,
    "env": check_env,
    "cpu_millis": check_cpu_millis,
    "memory_mib": check_memory_mib,
    "timeout": check_timeout,
}
"""Checks of the spec's fields, all of which a client may set."""

FIELD_CHECKS: Mapping[str, Callable[[Sandbox], None]] = {
    "state": check_state,
    "labels": check_labels,
    "annotations": check_annotations,
}
"""Checks of the sandbox's fields that a client may change, apart from the spec."""


def check_new(sandbox: Sandbox) -> None:
    """Check the fields of a new sandbox. It may come without a state."""
    check_account(sandbox.account)
    fields = FIELD_CHECKS if sandbox.state else [name for name in FIELD_CHECKS if name != "state"]
    check_fields(sandbox, fields, SPEC_CHECKS)


def check_fields(sandbox: Sandbox, fields: Iterable[str], spec_fields: Iterable[str]) -> None:
    for name in fields:
        FIELD_CHECKS[name](sandbox)
    for name in spec_fields:
        SPEC_CHECKS[name](sandbox)


def _check_count(field: str, items: Iterable[str], most: int) -> None:
    count = len(items)  # type: ignore[arg-type]
    if count > most:
        raise InvalidField(field, f"{count} entries", f"at most {most}")


def _check_text(value: str, field: str, most_bytes: int, *, secret: bool = False) -> None:
    size = len(value.encode())
    if size > most_bytes:
        raise InvalidField(field, f"{size} bytes", f"at most {most_bytes} bytes")
    _check_no_nul(value, field, secret=secret)


def _check_no_nul(value: str, field: str, *, secret: bool = False) -> None:
    if "\0" in value:
        raise InvalidField(field, Hidden() if secret else value, "text without NUL characters")


def _check_range(field: str, value: int, most: int) -> None:
    if not 0 <= value <= most:
        raise InvalidField(field, value, f"0 to {most}")
