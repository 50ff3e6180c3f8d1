"""Rows are not removed by hand, and each bucket's rows are counted, so that lost ones are missed."""

from alembic import op

from services.service_layer.store.postgres_guards import COUNT_NOW

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# A marked transaction may remove rows of the table that it names: `SET LOCAL baton.removing = 'record'`. Processes of
# the release before do not mark theirs: until they are replaced, their pruning is refused, and that of the newer ones
# does its work.
#
# The counts stand beside the bucket's row, which creates hold FOR SHARE. Each session adds to a stripe of its own, so
# creates at once do not wait for each other; a batch adds in the order of buckets, so no two wait in a ring. New rows
# are counted by the trigger that notes them for watches: one call for both.
STATEMENTS = (
    """
CREATE FUNCTION refuse_removal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' AND current_setting('baton.removing', true) = TG_TABLE_NAME THEN
    RETURN NULL;
  END IF;
  RAISE EXCEPTION '%: rows are never removed by %: a deleted record is a tombstone', TG_TABLE_NAME, TG_OP
    USING ERRCODE = 'restrict_violation', HINT = 'Delete records by the API; restore lost ones with `baton recover`.';
END $$
""",
    *(
        f"CREATE TRIGGER {table}_stays BEFORE DELETE OR TRUNCATE ON {table}"
        " FOR EACH STATEMENT EXECUTE FUNCTION refuse_removal()"
        for table in ("record", "bucket", "served")
    ),
    """
CREATE TABLE row_count (
  bucket smallint NOT NULL,
  stripe smallint NOT NULL,
  records bigint NOT NULL,
  PRIMARY KEY (bucket, stripe)
) WITH (fillfactor = 50)
""",
    """
CREATE OR REPLACE FUNCTION note_made() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO change (key, xid)
    SELECT key, pg_current_xact_id() FROM made WHERE (write_term, write_revision) <> (0, 0)
    ON CONFLICT (key) DO UPDATE SET xid = excluded.xid;
  INSERT INTO row_count AS c (bucket, stripe, records)
    SELECT bucket, pg_backend_pid() % 32, count(*) FROM made GROUP BY bucket ORDER BY bucket
    ON CONFLICT (bucket, stripe) DO UPDATE SET records = c.records + excluded.records;
  RETURN NULL;
END $$
""",
    """
CREATE FUNCTION count_removed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO row_count AS c (bucket, stripe, records)
    SELECT bucket, pg_backend_pid() % 32, -count(*) FROM removed GROUP BY bucket ORDER BY bucket
    ON CONFLICT (bucket, stripe) DO UPDATE SET records = c.records + excluded.records;
  RETURN NULL;
END $$
""",
    """
CREATE TRIGGER record_removed AFTER DELETE ON record REFERENCING OLD TABLE AS removed
FOR EACH STATEMENT EXECUTE FUNCTION count_removed()
""",
    # The triggers above hold the table's lock: no row is made between the count and the commit.
    COUNT_NOW,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TRIGGER record_removed ON record")
    for table in ("record", "bucket", "served"):
        op.execute(f"DROP TRIGGER {table}_stays ON {table}")
    op.execute("DROP FUNCTION refuse_removal")
    op.execute("DROP FUNCTION count_removed")
    op.execute(
        """
CREATE OR REPLACE FUNCTION note_made() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO change (key, xid)
    SELECT key, pg_current_xact_id() FROM made WHERE (write_term, write_revision) <> (0, 0)
    ON CONFLICT (key) DO UPDATE SET xid = excluded.xid;
  RETURN NULL;
END $$
"""
    )
    op.execute("DROP TABLE row_count")
