"""Parked events without a right code, and the offsets from which on events need one."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# With defaults: processes of the release before park without them while others start on this one.
UP = (
    "ALTER TABLE parked ADD COLUMN unauthenticated boolean NOT NULL DEFAULT false",
    "ALTER TABLE progress ADD COLUMN unauthenticated bigint NOT NULL DEFAULT 0",
    "CREATE TABLE checked_from (part integer PRIMARY KEY, start bigint NOT NULL)",
)
DOWN = (
    "DROP TABLE checked_from",
    "ALTER TABLE progress DROP COLUMN unauthenticated",
    "DELETE FROM parked WHERE unauthenticated",
    "ALTER TABLE parked DROP COLUMN unauthenticated",
)


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)
