# ruff: noqa
"""Generated from the contract by `make protos`. Do not edit."""
