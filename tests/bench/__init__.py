"""Benchmarks: `python -m tests.bench`, or `make bench`.

Each figure has a baseline that was measured in the same run, in alternating rounds, so that other work on the machine
slows both. So ratios can be compared between runs and machines; single figures cannot. A missed target is reported but
does not fail the run: the exit code is 0 unless a bench could not be measured.
"""
