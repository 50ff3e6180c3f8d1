"""Table of events that the log refuses, so that they do not block the outbox."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
CREATE TABLE aside (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  key text COLLATE "C" NOT NULL,
  term bigint NOT NULL,
  revision bigint NOT NULL,
  event bytea NOT NULL,
  traceparent text NOT NULL,
  tick bigint NOT NULL,
  reason text NOT NULL,
  UNIQUE (key, term, revision)
)
""",
    "ALTER TABLE aside ALTER COLUMN event SET STORAGE EXTERNAL",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE aside")
