"""Locks on records: they keep writers of one record apart, so that they do not run into each other's versions.

A lock is never what makes a write right: the version in the record's row decides in the write's own transaction. So a
lost lock, or none at all, costs a write a second try and nothing else.
"""
