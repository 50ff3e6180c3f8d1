"""Semantics of `sandbox.v1.SandboxService`: pure functions without I/O and clock."""
