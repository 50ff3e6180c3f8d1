"""All versions that a record had before a seizure, not only the last one."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# No change of a record: its version stays, so the trigger that refuses such updates is off meanwhile. The columns of
# the one base stay for processes of the release before, which write them still while others start on this one.
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
