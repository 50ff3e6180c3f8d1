"""Feature flags, from whatever keeps them: a port, and one file per technology behind OpenFeature."""
