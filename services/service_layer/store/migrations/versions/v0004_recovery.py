"""The database's identity, its fence, and the journal of conflicts that a seizure leaves behind."""

from alembic import op

from services.service_layer.store.postgres_identity import DATABASE

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# `place` is the identity of the database when it was created or recovered. A restored backup has another identity: a
# copy of the data, restored by SQL, is in tables and databases with other OIDs, and a promoted server is on another
# timeline.
STATEMENTS = (
    """
CREATE TABLE standing (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  id uuid NOT NULL DEFAULT gen_random_uuid(),
  place text NOT NULL,
  gone text NOT NULL DEFAULT '',
  other_place text,
  other_changes bigint
)
""",
    "INSERT INTO standing (place) VALUES ('')",
    f"UPDATE standing s SET place = {DATABASE}",
    """
CREATE TABLE conflict (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  bucket smallint NOT NULL,
  key text COLLATE "C" NOT NULL,
  term bigint NOT NULL,
  revision bigint NOT NULL,
  why text NOT NULL,
  event bytea NOT NULL,
  resolution text NOT NULL DEFAULT '',
  UNIQUE (key, term, revision)
)
""",
    "CREATE INDEX conflict_open ON conflict (bucket) WHERE resolution = ''",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE conflict")
    op.execute("DROP TABLE standing")
