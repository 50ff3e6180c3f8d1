"""Sizes of what travels in one call."""

METADATA_BYTES = 8 * 1024
"""Of all metadata of a call, either way."""

REQUEST_BYTES = 1024 * 1024
"""Of a client's request."""

INTERNAL_REQUEST_BYTES = 4 * 1024 * 1024
"""Of a request between a router and a store: a batch of records."""

ANSWER_BYTES = 2 * 1024 * 1024
"""A page of records ends when it has reached this size."""

HARD_MESSAGE_BYTES = 16 * 1024 * 1024
"""What the transport accepts. Between this and the limits above a call is refused with a proper error."""
