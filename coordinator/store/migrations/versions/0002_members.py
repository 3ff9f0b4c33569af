"""The members' signing keys, and the member list that the federation root signs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add two columns to the roster, and the list."""
    op.add_column("members", sa.Column("signing_key", sa.LargeBinary(32), nullable=True))
    op.add_column("members", sa.Column("signing_proof", sa.LargeBinary(96), nullable=True))
    op.create_table(
        "member_entries",
        sa.Column("index", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.LargeBinary(64), nullable=False),
    )


def downgrade() -> None:
    """Forget both."""
    op.drop_table("member_entries")
    op.drop_column("members", "signing_proof")
    op.drop_column("members", "signing_key")
