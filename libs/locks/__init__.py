"""Locks on records: they keep writers of one record apart, so that their versions do not conflict.

A lock is never needed for correctness: the version in the record's row decides in the write's own transaction. A lost
or missing lock only costs a second attempt.
"""
