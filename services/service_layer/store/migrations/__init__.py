"""The schema's history. Run by `postgres_schema`."""
