"""Sizes of what travels in one call."""

METADATA_BYTES = 8 * 1024
"""Of all metadata of a call, either way."""

REQUEST_BYTES = 1024 * 1024
"""Of a client's request."""

INTERNAL_REQUEST_BYTES = 4 * 1024 * 1024
"""Of a request between a router and a store: a batch of records."""

ANSWER_BYTES = 2 * 1024 * 1024
"""A page of records ends when it has reached this size."""

REQUEST_SLACK_BYTES = 64 * 1024
"""How far a request may exceed its limit and still be refused with a reason of ours. Beyond it the transport refuses
it unread."""

HARD_MESSAGE_BYTES = 16 * 1024 * 1024
"""The longest message that the transport sends, and that a client of ours receives."""
