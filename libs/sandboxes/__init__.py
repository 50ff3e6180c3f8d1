"""What the calls of `sandbox.v1.SandboxService` mean: pure functions, no I/O, no clock."""
