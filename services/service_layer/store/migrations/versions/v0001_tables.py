"""Tables: records, bucket owners, served requests, the outbox, the feed's position in the log, ticks."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Keys compare bytewise, as names do everywhere in this system, independent of the database's locale.
# Payloads, events and answers are stored uncompressed (EXTERNAL): protobuf compresses little, and compression costs the
# writer time at each change. The pages of `record` have free space, so that an update puts the new row on the same page
# and touches no index (HOT): no indexed column of it ever changes.
STATEMENTS = (
    """
CREATE TABLE record (
  key text COLLATE "C" PRIMARY KEY,
  bucket smallint NOT NULL CHECK (bucket BETWEEN 0 AND 1023),
  term bigint NOT NULL CHECK (term >= 0),
  revision bigint NOT NULL CHECK (revision >= 1),
  owner text NOT NULL CHECK (owner IN ('A', 'B')),
  write_term bigint NOT NULL,
  write_revision bigint NOT NULL,
  live boolean NOT NULL,
  schema_version integer NOT NULL,
  base_term bigint,
  base_revision bigint,
  digest bigint NOT NULL,
  payload bytea NOT NULL,
  state text COLLATE "C",
  account text COLLATE "C",
  labels jsonb NOT NULL
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05)
""",
    "CREATE INDEX record_bucket_key ON record (bucket, key)",
    "CREATE INDEX record_account_key ON record (account, key)",
    # The next handoff would lose a change that makes no version, so such a change is refused.
    """
CREATE FUNCTION refuse_unchanged_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'record %: version (%, %) does not rise by this update', OLD.key, OLD.term, OLD.revision
    USING ERRCODE = 'restrict_violation';
END $$
""",
    """
CREATE TRIGGER record_version_rises BEFORE UPDATE ON record FOR EACH ROW
WHEN ((NEW.term, NEW.revision) <= (OLD.term, OLD.revision)) EXECUTE FUNCTION refuse_unchanged_version()
""",
    """
CREATE TABLE bucket (
  bucket smallint PRIMARY KEY CHECK (bucket BETWEEN 0 AND 1023),
  term bigint NOT NULL,
  version bigint NOT NULL,
  owner text NOT NULL CHECK (owner IN ('A', 'B'))
) WITH (fillfactor = 50)
""",
    "INSERT INTO bucket SELECT n, 0, 0, 'A' FROM generate_series(0, 1023) n",
    """
CREATE TABLE served (
  key text COLLATE "C" NOT NULL,
  principal text COLLATE "C" NOT NULL,
  request_id text COLLATE "C" NOT NULL,
  request_hash bytea NOT NULL,
  term bigint NOT NULL,
  revision bigint NOT NULL,
  answer bytea,
  tick bigint NOT NULL,
  PRIMARY KEY (key, principal, request_id)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.2)
""",
    # For the newest requests of a key, and for the oldest of all. Equal ticks share one index entry.
    "CREATE INDEX served_newest ON served (key, term, revision)",
    "CREATE INDEX served_tick ON served (tick)",
    # A queue: rows come and go, so vacuum runs by count, not by fraction. The depth is read from the index alone.
    """
CREATE TABLE outbox (
  id bigint GENERATED ALWAYS AS IDENTITY,
  key text COLLATE "C" NOT NULL,
  term bigint NOT NULL,
  revision bigint NOT NULL,
  event bytea NOT NULL,
  bytes integer NOT NULL,
  traceparent text NOT NULL,
  tick bigint NOT NULL,
  PRIMARY KEY (id) INCLUDE (bytes, tick),
  UNIQUE (key, term, revision)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 10000)
""",
    """
CREATE TABLE progress (
  part integer PRIMARY KEY,
  next bigint NOT NULL,
  applied bigint NOT NULL DEFAULT 0,
  old bigint NOT NULL DEFAULT 0,
  parked bigint NOT NULL DEFAULT 0,
  journaled bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50)
""",
    """
CREATE TABLE parked (
  part integer NOT NULL,
  place bigint NOT NULL,
  key text COLLATE "C" NOT NULL,
  reason text NOT NULL,
  event bytea NOT NULL,
  id bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
  PRIMARY KEY (part, place)
)
""",
    "ALTER TABLE record ALTER COLUMN payload SET STORAGE EXTERNAL",
    "ALTER TABLE served ALTER COLUMN answer SET STORAGE EXTERNAL",
    "ALTER TABLE outbox ALTER COLUMN event SET STORAGE EXTERNAL",
    "ALTER TABLE parked ALTER COLUMN event SET STORAGE EXTERNAL",
    "CREATE TABLE tick (one boolean PRIMARY KEY DEFAULT true CHECK (one), now bigint NOT NULL) WITH (fillfactor = 50)",
    "INSERT INTO tick (now) VALUES (0)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    for table in ("tick", "parked", "progress", "outbox", "served", "bucket", "record"):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP FUNCTION refuse_unchanged_version")
