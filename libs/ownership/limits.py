"""Sizes that the protocol relies on. Together they make sure that a record can always be released.

An event must fit the log, and a release carries the served window: so a payload is bounded such that the envelope of a
full window, without answers, still fits beside it.
"""

MAX_EVENT_BYTES = 512 * 1024
"""Of a serialized Record: what the log accepts, with room for its headers."""

MAX_ANSWER_BYTES = 16 * 1024
"""A larger answer of a served request is not kept."""

SERVED_WINDOW = 64
"""Served requests of a record that a release carries, the newest ones."""

RETRY_WINDOW_SECONDS = 600
"""How long a served request is known at least, in ticks of the store that learned it."""

LONGEST_TICK_SECONDS = 2.0
"""By which a store's ticks grow at once at most. So what is counted from a tick is too short by no more than this."""

MAX_REVISION = 2**62 - 1
"""Of a record in an event, and of a term: no record is changed so often, and a database counts to twice that."""

MAX_STORED_REVISION = 2**63 - 1
"""As far as a database counts. Only an event that was applied unchecked can have brought one above MAX_REVISION."""

MAX_KEY_BYTES = 256
MAX_PRINCIPAL_BYTES = 128
MAX_REQUEST_ID_BYTES = 36
REQUEST_HASH_BYTES = 16

MAX_SERVED_BYTES = MAX_PRINCIPAL_BYTES + MAX_REQUEST_ID_BYTES + REQUEST_HASH_BYTES + 64
"""Of one served request without its answer: its fields, two varints of ten bytes, tags and lengths."""

MAX_BASES = 16
"""Seizures of which a record keeps what came before: a migration hardly sees so many losses of a store."""

MAX_BASE_BYTES = 24
"""Of one on the wire: two varints of ten bytes, tags and a length."""

MAX_PAYLOAD_BYTES = (
    MAX_EVENT_BYTES - SERVED_WINDOW * MAX_SERVED_BYTES - MAX_BASES * MAX_BASE_BYTES - MAX_KEY_BYTES - 256
)
"""So that an event with a full window, without answers, fits."""

MAX_COPY_BYTES = 3 * 1024 * 1024
"""Of a payload that can be copied to the other store: with envelope and served requests it fits one call. Only an old
program can have left a payload above MAX_PAYLOAD_BYTES; up to this size the other store can hold a replica of it."""

RELEASE_ANSWER_BYTES = 1024 * 1024
"""A release of many keys stops when its answer has reached this size."""

RELEASE_ENVELOPE_BYTES = 256
"""Of a release's event beside what its row and its served requests take in the store."""
