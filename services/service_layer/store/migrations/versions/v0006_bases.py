"""A record's versions before all of its seizures, not only before the last one."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# The migration keeps each record's version, so the trigger that refuses such updates is disabled meanwhile. The columns
# of the single base stay for processes of the previous release, which still write them during a rolling update.
UP = (
    "ALTER TABLE record ADD COLUMN bases text COLLATE \"C\" NOT NULL DEFAULT ''",
    "ALTER TABLE record DISABLE TRIGGER record_version_rises",
    "UPDATE record SET bases = base_term || '.' || base_revision WHERE base_term IS NOT NULL",
    "ALTER TABLE record ENABLE TRIGGER record_version_rises",
)
DOWN = (
    "ALTER TABLE record DISABLE TRIGGER record_version_rises",
    "UPDATE record SET base_term = split_part(split_part(bases, ' ', -1), '.', 1)::bigint,"
    " base_revision = split_part(split_part(bases, ' ', -1), '.', 2)::bigint WHERE bases <> ''",
    "ALTER TABLE record ENABLE TRIGGER record_version_rises",
    "ALTER TABLE record DROP COLUMN bases",
)


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)
