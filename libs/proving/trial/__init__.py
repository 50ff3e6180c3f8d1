"""A trial of the whole system: real processes, live load, a pass through the phases, and a verdict on the evidence."""
