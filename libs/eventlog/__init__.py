"""The event log: an ordered, durable feed of record changes. `port` defines its guarantees."""
