"""The ledger names retention targets: its column `store` becomes `target`, since the store is the whole database."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Rename the column. `setup.apply_contract` then adds the check under its new name."""
    op.execute("alter table analytics.retention_ledger rename column store to target")
    # A new database has no checks yet.
    op.execute("alter table analytics.retention_ledger drop constraint if exists retention_ledger_store")
