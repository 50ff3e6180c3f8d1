"""Table of each record's newest write, for watches."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# A separate table, because an update of a `record` row must not touch an index. Triggers fill it, so that no statement
# can omit it; a handoff is no write and adds no entry. `xid` is the writing transaction. With a sequence, a reader that
# has seen a higher number would miss a lower one that commits later. Inserts are noted once per statement, which halves
# their cost for a copy. Updates are compared row by row: a join of old and new rows would cost more.
STATEMENTS = (
    """
CREATE TABLE change (
  key text COLLATE "C" PRIMARY KEY,
  xid xid8 NOT NULL
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05)
""",
    "CREATE INDEX change_xid ON change (xid)",
    """
CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO change (key, xid) VALUES (NEW.key, pg_current_xact_id())
    ON CONFLICT (key) DO UPDATE SET xid = excluded.xid;
  RETURN NULL;
END $$
""",
    """
CREATE FUNCTION note_made() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO change (key, xid)
    SELECT key, pg_current_xact_id() FROM made WHERE (write_term, write_revision) <> (0, 0)
    ON CONFLICT (key) DO UPDATE SET xid = excluded.xid;
  RETURN NULL;
END $$
""",
    """
CREATE TRIGGER record_made AFTER INSERT ON record REFERENCING NEW TABLE AS made
FOR EACH STATEMENT EXECUTE FUNCTION note_made()
""",
    """
CREATE TRIGGER record_written AFTER UPDATE ON record FOR EACH ROW
WHEN ((NEW.write_term, NEW.write_revision) <> (OLD.write_term, OLD.write_revision)) EXECUTE FUNCTION note_change()
""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TRIGGER record_written ON record")
    op.execute("DROP TRIGGER record_made ON record")
    op.execute("DROP FUNCTION note_made")
    op.execute("DROP FUNCTION note_change")
    op.execute("DROP TABLE change")
