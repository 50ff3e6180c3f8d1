"""The mark of the last event that was read from a partition."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# Processes of the previous release move `next` and keep the mark of an earlier event. The trigger then clears the mark,
# and the next process of this release sets that of the last event.
UP = (
    "ALTER TABLE progress ADD COLUMN mark text COLLATE \"C\" NOT NULL DEFAULT ''",
    """
CREATE FUNCTION forget_mark() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.mark = '';
  RETURN NEW;
END $$
""",
    "CREATE TRIGGER progress_mark BEFORE UPDATE ON progress FOR EACH ROW"
    " WHEN (NEW.next <> OLD.next AND NEW.mark = OLD.mark) EXECUTE FUNCTION forget_mark()",
)
DOWN = (
    "DROP TRIGGER progress_mark ON progress",
    "DROP FUNCTION forget_mark()",
    "ALTER TABLE progress DROP COLUMN mark",
)


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)
