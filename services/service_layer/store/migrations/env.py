"""Alembic's entry point: runs the migrations on the connection of `postgres_schema`, in its transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], target_metadata=None)
context.run_migrations()
