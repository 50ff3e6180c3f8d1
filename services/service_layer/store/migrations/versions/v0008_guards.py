"""Guards against lost rows: removals must be announced, and each bucket's rows are counted."""

from alembic import op

from services.service_layer.store.postgres_guards import COUNT_NOW

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# A transaction that announces it may remove rows of a table: `SET LOCAL baton.removing = 'record'`. Processes of the
# previous release do not announce their pruning. It is refused until they are replaced; newer processes prune instead.
#
# The counts have their own table, because creates hold the bucket's row FOR SHARE. Each session adds to its own stripe,
# so concurrent creates do not wait for each other. A batch adds in the order of buckets, so batches cannot deadlock.
# The trigger that notes new rows for watches also counts them: one call for both.
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
    # Creating the triggers has locked the table: no row is inserted between the count and the commit.
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
