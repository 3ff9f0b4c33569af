"""The journal of tasks, and the plan that each run is pinned to."""

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
        "tasks",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("task_id", sa.String(255), nullable=False, unique=True),
        sa.Column("run_id", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("round", sa.BigInteger, nullable=False),
        sa.Column("attempt", sa.BigInteger, nullable=False),
        sa.Column("base_version", sa.BigInteger, nullable=False),
        sa.Column("base_digest", sa.LargeBinary(32), nullable=False),
        sa.Column("seed", sa.String(20), nullable=False),
        sa.Column("evaluate", sa.Boolean, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("code", sa.String(64), nullable=False),
        sa.Column("update_digest", sa.LargeBinary(32), nullable=False),
        sa.Column("update_size", sa.BigInteger, nullable=False),
        sa.Column("examples", sa.BigInteger, nullable=True),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("evaluation", sa.Text, nullable=False),
        sa.Column("at_s", sa.Double, nullable=False),
    )
    op.create_table(
        "plans",
        sa.Column("run_id", sa.String(255), primary_key=True),
        sa.Column("plan_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("at_s", sa.Double, nullable=False),
    )


def downgrade() -> None:
    """Drop everything: before the first version there was nothing."""
    op.drop_table("plans")
    op.drop_table("tasks")
