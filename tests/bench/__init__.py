"""What the system costs: `python -m tests.bench`, or `make bench`.

Every figure stands beside a baseline that was measured in the same run, in turns with it, so that a machine that is
busy with other things slows both. So ratios can be compared between runs and machines, single figures cannot. A target
that is missed is said, never asserted: the exit code is 0 unless something could not be measured.
"""
