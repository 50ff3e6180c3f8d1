"""An index for lists by state, like the one for lists by account."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Writes of running processes wait for its creation: about a second for a million records. A change of the state
    # touches this index; other updates of a row still touch no index.
    op.execute("CREATE INDEX record_state_key ON record (state, key)")


def downgrade() -> None:
    op.execute("DROP INDEX record_state_key")
