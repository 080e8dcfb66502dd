"""Alembic's entry point: runs the migrations on the connection that `setup.init_db` hands over."""

from alembic import context

from analytics_assets.contract import SCHEMA
from analytics_assets.store.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table_schema=SCHEMA,
)
with context.begin_transaction():
    context.run_migrations()
