"""Measurement of the pool size that is enough for a given PostgreSQL."""
