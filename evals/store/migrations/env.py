"""Alembic's entry point. The store passes its own connection, already inside a transaction that holds the lock."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
