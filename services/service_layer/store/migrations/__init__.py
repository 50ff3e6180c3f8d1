"""History of the schema. `postgres_schema` runs it."""
