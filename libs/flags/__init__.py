"""Feature flags from any source: a port, and one file per technology behind OpenFeature."""
