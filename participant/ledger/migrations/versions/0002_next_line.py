"""Only the next line can be inserted: INSERT OR REPLACE gets past the trigger that refuses DELETE."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Refuse every number but the next one."""
    op.execute(
        "CREATE TRIGGER lines_next BEFORE INSERT ON lines "
        "WHEN NEW.number IS NOT (SELECT COALESCE(MAX(number) + 1, 0) FROM lines) "
        "BEGIN SELECT RAISE(ABORT, 'the privacy ledger can only be appended to'); END"
    )


def downgrade() -> None:
    """A ledger isn't thrown away."""
    raise NotImplementedError("remove the file by hand if you really want to forget what was spent")
