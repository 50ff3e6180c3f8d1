"""Columns for the mark of a record's lease and the tick at which this store first saw it."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Earlier records have no lease. The columns need no index: they are read only with their row.
    op.execute(
        "ALTER TABLE record ADD COLUMN lease text COLLATE \"C\" NOT NULL DEFAULT '',"
        " ADD COLUMN lease_tick bigint NOT NULL DEFAULT 0"
    )


def downgrade() -> None:
    op.execute("ALTER TABLE record DROP COLUMN lease, DROP COLUMN lease_tick")
