"""The event log: an ordered, durable feed of record changes. `port` holds the promises."""
