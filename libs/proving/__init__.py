"""Tools that prove the system: recorded histories, trials with real processes, their servers, a bench of pool sizes.

Running services import none of this.
"""
