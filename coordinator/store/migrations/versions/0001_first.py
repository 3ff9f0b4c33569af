"""Runs, their log and checkpoints; the roster, its invitations, and the count of refusals."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the first tables."""
    op.create_table(
        "runs",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("run_id", sa.String(255), nullable=False, unique=True),
        sa.Column("plan", sa.LargeBinary, nullable=False),
        sa.Column("plan_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("created_s", sa.Double, nullable=False),
    )
    op.create_table(
        "transitions",
        sa.Column("run_id", sa.String(255), sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("at_s", sa.Double, nullable=False),
    )
    op.create_table(
        "checkpoints",
        sa.Column("run_id", sa.String(255), sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("created_s", sa.Double, nullable=False),
    )
    op.create_table(
        "members",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("certificate_pem", sa.LargeBinary, nullable=False),
        sa.Column("serial", sa.String(64), nullable=False),
        sa.Column("since_s", sa.Double, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_table(
        "invitations",
        sa.Column("name", sa.String(255), sa.ForeignKey("members.name"), primary_key=True),
        sa.Column("secret_hash", sa.LargeBinary(32), primary_key=True),
        sa.Column("expires_s", sa.Double, nullable=False),
        sa.Column("used_s", sa.Double, nullable=True),
    )
    op.create_table(
        "refusals",
        sa.Column("code", sa.String(64), primary_key=True),
        sa.Column("peer", sa.String(255), primary_key=True),
        sa.Column("total", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Drop everything: before the first version there was nothing."""
    for table in ("refusals", "invitations", "members", "checkpoints", "transitions", "runs"):
        op.drop_table(table)
