"""Secure sums: the statements of the open attempt, prekeys, and the log of results."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the three tables."""
    op.create_table(
        "statements",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("run_id", sa.String(255), sa.ForeignKey("runs.run_id"), nullable=False),
        sa.Column("context", sa.LargeBinary(32), nullable=False),
        sa.Column("sender", sa.String(255), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.LargeBinary(64), nullable=False),
        sa.Column("at_s", sa.Double, nullable=False),
    )
    op.create_table(
        "prekeys",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.LargeBinary(64), nullable=False),
    )
    op.create_table(
        "results",
        sa.Column("index", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("run_id", sa.String(255), sa.ForeignKey("runs.run_id"), nullable=False),
        sa.Column("round", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.LargeBinary(64), nullable=False),
    )


def downgrade() -> None:
    """Forget them."""
    for name in ("results", "prekeys", "statements"):
        op.drop_table(name)
