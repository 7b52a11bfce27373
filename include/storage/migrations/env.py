"""Alembic's entry point; `include.storage.warehouse.migrate` hands the connection in."""

from alembic import context

connection = context.config.attributes["connection"]
# The table is named so that the warehouse may live in one database with others that use Alembic (Airflow's).
context.configure(connection=connection, version_table="warehouse_version", transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
