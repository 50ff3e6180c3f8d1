"""Which size of a pool is enough on somebody's own PostgreSQL: measured, not guessed."""
