"""The ledger's lines, which can only be appended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table and what keeps it append-only."""
    op.create_table(
        "lines",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.LargeBinary(64), nullable=False),
    )
    for action in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER lines_no_{action.lower()} BEFORE {action} ON lines "
            "BEGIN SELECT RAISE(ABORT, 'the privacy ledger can only be appended to'); END"
        )


def downgrade() -> None:
    """A ledger isn't thrown away."""
    raise NotImplementedError("remove the file by hand if you really want to forget what was spent")
