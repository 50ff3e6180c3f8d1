"""Headers and topic of a parked event's message."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# With defaults: processes of the previous release park events without these columns during a rolling update.
UP = (
    "ALTER TABLE parked ADD COLUMN headers bytea NOT NULL DEFAULT ''",
    "ALTER TABLE parked ADD COLUMN topic text COLLATE \"C\" NOT NULL DEFAULT ''",
)
DOWN = ("ALTER TABLE parked DROP COLUMN topic", "ALTER TABLE parked DROP COLUMN headers")


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)
