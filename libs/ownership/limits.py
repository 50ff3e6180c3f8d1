"""Size limits of the protocol. Together they ensure that every record can be released.

An event must fit the log, and a release carries the served window. So the payload limit leaves room for the envelope
and for a full window without answers.
"""

MAX_EVENT_BYTES = 512 * 1024
"""Maximum size of an event, a serialized Record: the log's limit, less room for headers."""

MAX_ANSWER_BYTES = 16 * 1024
"""Maximum size of a served request's answer. A larger answer is not stored."""

SERVED_WINDOW = 64
"""Number of served requests that a release carries: the record's newest ones."""

RETRY_WINDOW_SECONDS = 600
"""Minimum time for which a store keeps a served request, measured in the ticks of that store."""

LONGEST_TICK_SECONDS = 2.0
"""Maximum step of a store's ticks. A duration measured from a tick is too short by at most this."""

MAX_REVISION = 2**62 - 1
"""Maximum revision of a record in an event, and maximum term. No record reaches it by its own changes, and it is half
of a database's largest integer."""

MAX_TERM_STEP = 1000
"""Terms that a store may be behind when it learns of a seizure. A seizure, which a person orders, raises a term by at
most 2. So a forged event cannot use up the numbers of terms."""

MAX_STORED_REVISION = 2**63 - 1
"""Largest integer of a database. A revision above MAX_REVISION can only come from an event that was applied
unchecked."""

MAX_KEY_BYTES = 256
MAX_PRINCIPAL_BYTES = 128
MAX_REQUEST_ID_BYTES = 36
REQUEST_HASH_BYTES = 16
REQUEST_NAME_BYTES = 16

MAX_SERVED_BYTES = MAX_PRINCIPAL_BYTES + MAX_REQUEST_ID_BYTES + REQUEST_HASH_BYTES + 64
"""Maximum size of one served request without its answer: its fields, two varints of ten bytes, tags and lengths."""

MAX_BASES = 16
"""Number of bases that a record keeps, one per seizure. A migration rarely loses a store so often."""

MAX_BASE_BYTES = 24
"""Maximum size of one base on the wire: two varints of ten bytes, tags and a length."""

MAX_PAYLOAD_BYTES = (
    MAX_EVENT_BYTES - SERVED_WINDOW * MAX_SERVED_BYTES - MAX_BASES * MAX_BASE_BYTES - MAX_KEY_BYTES - 256
)
"""Maximum size of a payload whose event fits with a full window without answers."""

MAX_COPY_BYTES = 3 * 1024 * 1024
"""Maximum size of a payload that can be copied to the other store: with envelope and served requests it fits one call.
A payload above MAX_PAYLOAD_BYTES can only come from the old program. Up to this size, the other store can hold a
replica of it."""

BULK_ROWS = 1000
"""Maximum number of records of one bulk release."""

BULK_LOCK_SECONDS = 0.02
"""Time for which a bulk release should hold its locks. A client's write may wait for it, so a store releases fewer
records at once while it takes longer."""

BULK_READ_BYTES = 4 * 1024 * 1024
"""Size of the payloads that one bulk release reads, for the digests of the rows."""

RELEASE_ANSWER_BYTES = 1024 * 1024
"""Size of the answer at which a release of many keys stops."""

RELEASE_ENVELOPE_BYTES = 256
"""Size of a release's event, less the stored size of its row and its served requests."""
