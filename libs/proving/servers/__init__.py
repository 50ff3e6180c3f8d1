"""Real Kafka, PostgreSQL and Redis as child processes, for the tests and for the demo.

Each server keeps its files in one directory that the caller names, listens on loopback only, on a port of its own, and
dies with the process that started it. This package imports nothing here, so that the watchdog starts quickly.
"""
