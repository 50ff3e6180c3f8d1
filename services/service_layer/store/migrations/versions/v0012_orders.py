"""The highest order of a recovery, and the store's state when admission fenced it."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE standing ADD COLUMN recovery_order text NOT NULL DEFAULT ''")
    op.execute("ALTER TABLE standing ADD COLUMN fenced_at text NOT NULL DEFAULT ''")


def downgrade() -> None:
    op.execute("ALTER TABLE standing DROP COLUMN recovery_order")
    op.execute("ALTER TABLE standing DROP COLUMN fenced_at")
