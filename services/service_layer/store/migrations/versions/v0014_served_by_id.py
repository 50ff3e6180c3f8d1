"""The key of served requests begins with record and request id: a request is looked up under every principal."""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# Processes of the release before name the three columns in another order, which fits the same key.
UP = ("ALTER TABLE served DROP CONSTRAINT served_pkey, ADD PRIMARY KEY (key, request_id, principal)",)
DOWN = ("ALTER TABLE served DROP CONSTRAINT served_pkey, ADD PRIMARY KEY (key, principal, request_id)",)


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)
