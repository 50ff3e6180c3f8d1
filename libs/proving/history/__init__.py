"""Recorded histories of clients' calls, and the checks that decide whether they are correct. Standard library only."""
