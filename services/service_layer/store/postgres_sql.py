"""The statements that enforce the protocol, at isolation level READ COMMITTED. `libs.ownership.rules` lists those that
change a record's row.

tests/integration/test_postgres_interleavings.py runs each statement with and without its guard on a real database, and
shows the anomaly that the guard prevents.
"""

from __future__ import annotations

from services.service_layer.store.postgres_rows import BUCKET_OWNER, HEAD, RECORD_COLUMNS, ROW, SERVED, VISIBLE

NOW = "(SELECT now FROM tick)"
"""The store's ticks, in milliseconds."""

# Row and bucket owner in one statement, so from one snapshot. Two statements could both miss a record that is created
# between them.
READ = f"SELECT {ROW}, {BUCKET_OWNER} FROM bucket b LEFT JOIN record r ON r.key = $1 WHERE b.bucket = $2"

READ_MANY = (
    f"SELECT n.key AS asked, {ROW}, {BUCKET_OWNER}"
    " FROM unnest($1::text[], $2::smallint[]) WITH ORDINALITY AS n(key, bucket, ordinal)"
    " JOIN bucket b ON b.bucket = n.bucket LEFT JOIN record r ON r.key = n.key ORDER BY n.ordinal"
)

# For a write, also the age of the lease, and the served requests of its id: one line for each, of every principal. The
# read fences no writer; the condition in UPDATE does.
READ_FOR_WRITE = (
    f"SELECT {ROW}, {BUCKET_OWNER}, {SERVED}, CASE WHEN r.lease <> '' THEN {NOW} - r.lease_tick END AS lease_age"
    " FROM bucket b LEFT JOIN record r ON r.key = $1"
    " LEFT JOIN served s ON s.key = $1 AND s.request_id = $3 WHERE b.bucket = $2"
)

# An unchanged lease keeps the tick at which this store first saw it. A grant or a renewal sets the tick to now.
_LEASE_TICK = f"CASE WHEN r.lease = {{}} THEN r.lease_tick ELSE {NOW} END"

_SERVED_AND_OUTBOX = f"""
s AS (INSERT INTO served (key, principal, request_id, request_hash, term, revision, answer, tick)
      SELECT $1, $17, $18, $19, $3, $4, $20, {NOW} FROM w WHERE $17::text IS NOT NULL)
INSERT INTO outbox (key, term, revision, event, bytes, traceparent, tick)
SELECT $1, $3, $4, $21, octet_length($21::bytea), $22, {NOW} FROM w RETURNING id
"""

# Part of the statement: another process may have fenced the store before this process has seen the fence.
FENCE_REASON = "SELECT gone FROM standing"
NOT_FENCED = "NOT EXISTS (SELECT FROM standing WHERE gone <> '')"

UPDATE_GUARD = f"r.owner = $23 AND (r.term, r.revision) = ($24::bigint, $25::bigint) AND {NOT_FENCED}"

# If the row is locked, PostgreSQL waits and then checks the guard again on the committed row.
UPDATE = (
    f"WITH w AS (UPDATE record r SET ({RECORD_COLUMNS}) = ROW($1::text, $2::smallint, $3::bigint, $4::bigint, $5::text,"
    " $6::bigint, $7::bigint, $8::boolean, $9::integer, $10::text, $11::bigint, $12::bytea, $13::text,"
    f" $14::text, $15::jsonb, $16::text), lease_tick = {_LEASE_TICK.format('$16')}"
    f" WHERE r.key = $1 AND {UPDATE_GUARD} RETURNING 1), {_SERVED_AND_OUTBOX}"
)

CREATE_GUARD = f"SELECT FROM bucket WHERE bucket = $2 AND owner = $23 AND term = $24 AND {NOT_FENCED} FOR SHARE"

# The bucket's row is locked until the commit: either a release waits for the create, or the create waits for the
# release and then inserts no row.
CREATE = (
    f"WITH b AS MATERIALIZED ({CREATE_GUARD}),"
    f" w AS (INSERT INTO record ({RECORD_COLUMNS}, lease_tick)"
    " SELECT $1::text, $2::smallint, $3::bigint, $4::bigint, $5::text,"
    " $6::bigint, $7::bigint, $8::boolean, $9::integer, $10::text, $11::bigint, $12::bytea, $13::text,"
    f" $14::text, $15::jsonb, $16::text, {NOW} FROM b ON CONFLICT DO NOTHING RETURNING 1), {_SERVED_AND_OUTBOX}"
)

# In key order, so that two batches cannot deadlock.
LOCK_FOR_RELEASE = (
    f"SELECT {ROW}, {BUCKET_OWNER} FROM record r JOIN bucket b ON b.bucket = r.bucket"
    " WHERE r.key = ANY($1::text[]) AND r.owner = $2 ORDER BY r.key FOR UPDATE OF r"
)
LOCK_FOR_RELEASE_UNLESS_BUSY = f"{LOCK_FOR_RELEASE} SKIP LOCKED"

# For the release of one record: row, bucket owner and the requests that travel with it, from one snapshot. The read
# fences no writer; the condition in RELEASE does. Row and request of a write commit together, so a row that is still of
# this version has no further requests.
READ_FOR_RELEASE = f"""
SELECT {ROW}, {BUCKET_OWNER}, ARRAY(
  SELECT (i.principal, i.request_id, i.request_hash, (i.term, i.revision), i.answer) FROM served i
  WHERE i.key = r.key AND i.term = r.term AND i.revision <= r.revision AND i.tick >= {NOW} - $3
  ORDER BY i.revision DESC, i.principal DESC, i.request_id DESC LIMIT $4) AS served
FROM bucket b LEFT JOIN record r ON r.key = $1 WHERE b.bucket = $2
"""
RELEASE_GUARD = f"r.owner = $6 AND (r.term, r.revision) = ($7::bigint, $8::bigint) AND {NOT_FENCED}"

# It does not wait for a lock: the release of a busy record begins again in a transaction, whose waits are bounded.
RELEASE = f"""
WITH free AS MATERIALIZED (SELECT FROM record WHERE key = $1 FOR UPDATE SKIP LOCKED),
w AS (UPDATE record r SET owner = $2, term = $3, revision = $4, digest = $5
      WHERE EXISTS (SELECT FROM free) AND r.key = $1 AND {RELEASE_GUARD} RETURNING 1)
INSERT INTO outbox (key, term, revision, event, bytes, traceparent, tick)
SELECT $1, $3, $4, $9, octet_length($9::bytea), '', {NOW} FROM w RETURNING id
"""

SERVE = f"""
INSERT INTO served (key, principal, request_id, request_hash, term, revision, answer, tick)
VALUES ($1, $2, $3, $4, $5, $6, $7, {NOW}) ON CONFLICT DO NOTHING RETURNING 1
"""

# Replaces the entry of a request whose effect is not in the row. No row is returned if the entry has changed.
SERVE_AGAIN = f"""
UPDATE served SET request_hash = $4, term = $5, revision = $6, answer = $7, tick = {NOW}
WHERE key = $1 AND principal = $2 AND request_id = $3 AND (term, revision) = ($8::bigint, $9::bigint) RETURNING 1
"""

# Of two entries for one request the higher version stays, in any order of arrival. A statement may name a request only
# once.
LEARN_GUARD = "(o.term, o.revision) < (excluded.term, excluded.revision)"
LEARN = f"""
ON CONFLICT (key, principal, request_id) DO UPDATE SET request_hash = excluded.request_hash, term = excluded.term,
  revision = excluded.revision, answer = excluded.answer, tick = excluded.tick WHERE {LEARN_GUARD}
"""

LEARN_SERVED = f"""
INSERT INTO served AS o (key, principal, request_id, request_hash, term, revision, answer, tick)
SELECT n.*, {NOW} FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::bigint[], $6::bigint[],
                              $7::bytea[]) n {LEARN}
"""
FORGET = "DELETE FROM served WHERE key = ANY($1::text[])"

# The parameters are, by key, the highest versions of each term whose changes the row contains. Run it after the rows
# are locked: an earlier snapshot lacks the request of the last writer.
SERVED_WINDOW = f"""
SELECT s.key, {SERVED} FROM unnest($1::text[], $2::bigint[], $3::bigint[]) n(key, term, revision) CROSS JOIN LATERAL (
  SELECT * FROM served i
  WHERE i.key = n.key AND i.term = n.term AND i.revision <= n.revision AND i.tick >= {NOW} - $4
  ORDER BY i.revision DESC, i.principal DESC, i.request_id DESC LIMIT $5
) s ORDER BY s.key, s.term, s.revision, s.principal, s.request_id
"""

SERVED_WITHOUT_ANSWERS = SERVED_WINDOW.replace("s.answer", "NULL::bytea AS answer")

# The records of a bulk release. They are locked by key, without a wait.
OWNED = (
    "SELECT r.key, octet_length(r.payload) AS size FROM record r WHERE r.bucket = ANY($1::smallint[])"
    f" AND (r.bucket, r.key) > ($2::smallint, $3::text) AND r.owner = $4 AND {VISIBLE}"
    " ORDER BY r.bucket, r.key LIMIT $5"
)
LOCK_OWNED = (
    f"SELECT {ROW} FROM record r WHERE r.key = ANY($1::text[]) AND r.owner = $2 AND {VISIBLE}"
    " ORDER BY r.key FOR UPDATE OF r SKIP LOCKED"
)
HEADS = f"SELECT {HEAD} FROM record r WHERE r.key = ANY($1::text[])"
LOCK_HEADS = f"{HEADS} ORDER BY r.key FOR UPDATE"

# Lock the buckets and rows that a decision depends on until the commit.
_ORDERED_BUCKETS = f"SELECT {BUCKET_OWNER} FROM bucket b WHERE b.bucket = ANY($1::smallint[]) ORDER BY b.bucket"
HOLD_BUCKETS = f"{_ORDERED_BUCKETS} FOR NO KEY UPDATE"
READ_AND_SHARE_BUCKETS = f"{_ORDERED_BUCKETS} FOR SHARE"
SHARE_BUCKETS = "SELECT FROM bucket WHERE bucket = ANY($1::smallint[]) ORDER BY bucket FOR SHARE"
LOCK_ROWS = f"SELECT {ROW} FROM record r WHERE r.key = ANY($1::text[]) ORDER BY r.key FOR UPDATE"
LOCK_ROWS_OF_BUCKET = f"SELECT {ROW} FROM record r WHERE r.bucket = $1 ORDER BY r.key FOR UPDATE"
LOCK_HIDDEN = (
    f"SELECT {ROW} FROM bucket b JOIN record r ON r.bucket = b.bucket AND r.term < b.term"
    " WHERE b.term > 0 AND ($1::smallint IS NULL OR b.bucket = $1) ORDER BY r.key LIMIT $2 FOR UPDATE OF r"
)

PUT_BUCKETS = """
UPDATE bucket b SET term = n.term, version = n.version, owner = n.owner
FROM unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::bigint[], $7::text[])
     n(bucket, term, version, owner, was_term, was_version, was_owner)
WHERE b.bucket = n.bucket AND (b.term, b.version, b.owner) = (n.was_term, n.was_version, n.was_owner)
"""

# The guards of `Transaction.put`, by its argument `own`. With `own`, `was_owner` is this store.
_EXPECTED = "r.owner = n.was_owner AND (r.term, r.revision) = (n.was_term, n.was_revision)"
PUT_GUARDS = {True: f"{_EXPECTED} AND {NOT_FENCED}", False: _EXPECTED}

UPDATE_ENVELOPES = {
    own: f"""
UPDATE record r SET owner = n.owner, term = n.term, revision = n.revision, bases = n.bases, digest = n.digest
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::bigint[], $7::text[], $8::bigint[],
            $9::bigint[]) n(key, owner, term, revision, bases, digest, was_owner, was_term, was_revision)
WHERE r.key = n.key AND {guard} RETURNING r.key
"""
    for own, guard in PUT_GUARDS.items()
}

_ROWS = (
    "unnest($1::text[], $2::smallint[], $3::bigint[], $4::bigint[], $5::text[], $6::bigint[], $7::bigint[],"
    " $8::boolean[], $9::integer[], $10::text[], $11::bigint[], $12::bytea[], $13::text[], $14::text[], $15::text[],"
    " $16::text[]"
)
_SET_ROW = ", ".join(
    f"{name} = n.{name}{'::jsonb' if name == 'labels' else ''}"
    for name in RECORD_COLUMNS.split(", ")
    if name not in ("key", "bucket")
)
UPDATE_ROWS = {
    own: f"""
UPDATE record r SET {_SET_ROW}, lease_tick = {_LEASE_TICK.format("n.lease")}
FROM {_ROWS}, $17::text[], $18::bigint[], $19::bigint[]) n({RECORD_COLUMNS}, was_owner, was_term, was_revision)
WHERE r.key = n.key AND {guard} RETURNING r.key
"""
    for own, guard in PUT_GUARDS.items()
}

# A new row must be in its bucket's term. The bucket's row is locked until the commit.
INSERT_ROWS = {
    own: f"""
WITH b AS MATERIALIZED (SELECT bucket, term FROM bucket WHERE bucket = ANY($2::smallint[]) {owned}
                        ORDER BY bucket FOR SHARE)
INSERT INTO record AS r ({RECORD_COLUMNS}, lease_tick)
SELECT {", ".join("n.labels::jsonb" if name == "labels" else f"n.{name}" for name in RECORD_COLUMNS.split(", "))}, {NOW}
FROM {_ROWS}) WITH ORDINALITY AS n({RECORD_COLUMNS}, ordinal)
JOIN b ON b.bucket = n.bucket AND b.term = n.term ORDER BY n.ordinal ON CONFLICT DO NOTHING RETURNING r.key
"""
    for own, owned in ((True, f"AND owner = $17 AND {NOT_FENCED}"), (False, ""))
}

ENQUEUE = f"""
INSERT INTO outbox (key, term, revision, event, bytes, traceparent, tick)
SELECT n.key, n.term, n.revision, n.event, octet_length(n.event), n.traceparent, {NOW}
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bytea[], $5::text[])
     WITH ORDINALITY AS n(key, term, revision, event, traceparent, ordinal) ORDER BY n.ordinal
"""
DELETE_ROWS = "DELETE FROM record WHERE key = ANY($1::text[])"

# All buckets of a batch are in term 0 and stay there until the commit. Either a seizure of one waits for this
# statement, or this statement waits for the seizure and then applies no record (see `postgres_terms`).
_NOT_SEIZED = (
    "(SELECT count(*) FROM (SELECT FROM bucket WHERE bucket = ANY($2::smallint[]) AND term = 0 ORDER BY bucket"
    " FOR SHARE) held) = (SELECT count(DISTINCT bucket) FROM unnest($2::smallint[]) bucket)"
)

# Apply is a join: the higher version stays, in any order of arrival.
APPLY_GUARD = "(r.term, r.revision) < (excluded.term, excluded.revision)"
_SET = ", ".join(f"{name} = excluded.{name}" for name in RECORD_COLUMNS.split(", ") if name not in ("key", "bucket"))
_APPLY = f"""
INSERT INTO record AS r ({RECORD_COLUMNS}, lease_tick)
SELECT n.c1, n.c2, n.c3, n.c4, n.c5, n.c6, n.c7, n.c8, n.c9, n.c10, n.c11, n.c12, n.c13, n.c14, n.c15::jsonb,
       n.c16, {NOW}
FROM unnest($1::text[], $2::smallint[], $3::bigint[], $4::bigint[], $5::text[], $6::bigint[], $7::bigint[],
            $8::boolean[], $9::integer[], $10::text[], $11::bigint[], $12::bytea[], $13::text[],
            $14::text[], $15::text[], $16::text[])
  WITH ORDINALITY AS n(c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14, c15, c16, ordinal)
WHERE (SELECT yes FROM free) ORDER BY n.ordinal
ON CONFLICT (key) DO UPDATE SET {_SET}, lease_tick = {_LEASE_TICK.format("excluded.lease")} WHERE {APPLY_GUARD}
"""

# Applies records with their served requests in one statement: one round trip, and atomic without BEGIN. The requests
# depend on the count of the records, so locks are taken in the usual order, records first.
SEIZED = -1
APPLY_WITH_SERVED = f"""
WITH free AS MATERIALIZED (SELECT {_NOT_SEIZED} AS yes), w AS ({_APPLY}
  RETURNING 1), applied AS MATERIALIZED (SELECT count(*) AS records FROM w),
s AS (INSERT INTO served AS o (key, principal, request_id, request_hash, term, revision, answer, tick)
SELECT n.key, n.principal, n.request_id, n.request_hash, n.term, n.revision, n.answer, {NOW}
FROM applied CROSS JOIN
  unnest($17::text[], $18::text[], $19::text[], $20::bytea[], $21::bigint[], $22::bigint[], $23::bytea[])
  WITH ORDINALITY AS n(key, principal, request_id, request_hash, term, revision, answer, ordinal)
WHERE (SELECT yes FROM free) ORDER BY n.ordinal {LEARN})
SELECT CASE WHEN yes THEN records ELSE {SEIZED} END FROM applied, free
"""

# A process that has lost the partition finds another offset here, so it applies no event.
MOVE_GUARD = "p.next = n.before"
MOVE = (
    "UPDATE progress p SET next = n.after, mark = n.mark"
    " FROM unnest($1::integer[], $2::bigint[], $3::bigint[], $4::text[]) n(part, before, after, mark)"
    f" WHERE p.part = n.part AND {MOVE_GUARD}"
)
MAKE_PARTITIONS = "INSERT INTO progress (part, next) SELECT n, 0 FROM unnest($1::integer[]) n ON CONFLICT DO NOTHING"

COUNT = (
    "UPDATE progress SET applied = applied + $2, old = old + $3, parked = parked + $4, journaled = journaled + $5,"
    " unauthenticated = unauthenticated + $6 WHERE part = $1"
)
# Another event at the same position is from a log that was replaced since. This event replaces it, so it is not lost.
PARK = (
    "INSERT INTO parked AS p (part, place, key, reason, event, headers, topic, unauthenticated)"
    " SELECT * FROM unnest($1::integer[], $2::bigint[], $3::text[], $4::text[], $5::bytea[], $6::bytea[], $7::text[],"
    " $8::boolean[]) ON CONFLICT (part, place) DO UPDATE"
    " SET key = excluded.key, reason = excluded.reason, event = excluded.event, headers = excluded.headers,"
    " topic = excluded.topic, unauthenticated = excluded.unauthenticated"
    # An event without a right code does not replace another one.
    " WHERE p.unauthenticated OR NOT excluded.unauthenticated"
)
# Events, bytes. Processes of several partitions run it at once.
TRIM_UNAUTHENTICATED = """
DELETE FROM parked WHERE ctid = ANY(ARRAY(
  SELECT p.ctid FROM parked p JOIN (
    SELECT id, row_number() OVER newest AS number, sum(octet_length(event) + octet_length(headers)) OVER newest AS size
    FROM parked WHERE unauthenticated WINDOW newest AS (ORDER BY id DESC)
  ) n ON n.id = p.id WHERE n.number > 1 AND (n.number > $1 OR n.size > $2) FOR UPDATE OF p SKIP LOCKED))
"""

UNPARK = "DELETE FROM parked WHERE part = $1 AND place = $2 RETURNING 1"

JOURNAL = """
INSERT INTO conflict (bucket, key, term, revision, why, event)
SELECT * FROM unnest($1::smallint[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::bytea[])
ON CONFLICT DO NOTHING
"""
DISPUTED = "SELECT DISTINCT bucket FROM conflict WHERE bucket = ANY($1::smallint[]) AND resolution = ''"
DISPUTED_BUCKETS = "SELECT DISTINCT bucket FROM conflict WHERE resolution = ''"

STANDING = "SELECT *, (SELECT count(*) FROM conflict WHERE resolution = '') AS conflicts FROM standing"
LOCK_STANDING = f"{STANDING} FOR UPDATE"
PUT_STANDING = (
    "UPDATE standing SET place = $1, gone = $2, other_place = $3, other_changes = $4, recovery_order = $5,"
    " fenced_at = $6"
)

SOME_BUCKETS = f"SELECT {BUCKET_OWNER} FROM bucket b WHERE b.bucket = ANY($1::smallint[]) ORDER BY b.bucket"
ALL_BUCKETS = f"SELECT {BUCKET_OWNER} FROM bucket b ORDER BY b.bucket"

PULL = """
SELECT key, term, revision, event, traceparent FROM (
  SELECT o.*, sum(bytes) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) - bytes AS before
  FROM (SELECT * FROM outbox ORDER BY id LIMIT $1) o
) p WHERE before < $2 ORDER BY id
"""
# By name, never by a cursor or an id: a change with a lower id may commit later and must stay.
ACK = """
DELETE FROM outbox o USING unnest($1::text[], $2::bigint[], $3::bigint[]) n(key, term, revision)
WHERE o.key = n.key AND o.term = n.term AND o.revision = n.revision RETURNING o.bytes
"""
UNLOGGED = """
WITH n AS (SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[]) n(key, term, revision))
SELECT key, term, revision FROM outbox JOIN n USING (key, term, revision)
UNION ALL SELECT key, term, revision FROM aside JOIN n USING (key, term, revision)
"""
DEPTH = f"""
SELECT count(*) AS entries, coalesce(sum(bytes), 0)::bigint AS bytes,
       coalesce({NOW} - min(tick), 0) AS age FROM outbox
"""

# The tables are at least as large as their rows.
HELD = """
SELECT (SELECT count(*) FROM record) AS rows, pg_table_size('record') + pg_table_size('served') AS bytes
"""
