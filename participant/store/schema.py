"""The journal's tables, as the newest migration leaves them. A test compares the two."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

HEAD: Final = "0004"

metadata = sa.MetaData()

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("task_id", sa.String(255), nullable=False, unique=True),
    sa.Column("run_id", sa.String(255), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("round", sa.BigInteger, nullable=False),
    sa.Column("attempt", sa.BigInteger, nullable=False),
    sa.Column("base_version", sa.BigInteger, nullable=False),
    sa.Column("base_digest", sa.LargeBinary(32), nullable=False),
    # An unsigned 64-bit number, which no SQL integer holds.
    sa.Column("seed", sa.String(20), nullable=False),
    sa.Column("evaluate", sa.Boolean, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("code", sa.String(64), nullable=False),
    sa.Column("update_digest", sa.LargeBinary(32), nullable=False),
    sa.Column("update_size", sa.BigInteger, nullable=False),
    # NULL while there is no result.
    sa.Column("examples", sa.BigInteger, nullable=True),
    sa.Column("metrics", sa.Text, nullable=False),
    sa.Column("evaluation", sa.Text, nullable=False),
    sa.Column("at_s", sa.Double, nullable=False),
)

plans = sa.Table(
    "plans",
    metadata,
    sa.Column("run_id", sa.String(255), primary_key=True),
    sa.Column("plan_hash", sa.LargeBinary(32), nullable=False),
    sa.Column("at_s", sa.Double, nullable=False),
)

# The member list that this site has pinned.
member_entries = sa.Table(
    "member_entries",
    metadata,
    sa.Column("index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("signature", sa.LargeBinary(64), nullable=False),
)

# What this site remembers of secure sums: prekeys, the attempt in hand, earlier rosters. Secrets are erased with their
# rows; the database overwrites what it deletes.
secure_notes = sa.Table(
    "secure_notes",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("kind", sa.String(32), nullable=False),
    # Hash of the attempt's context; empty for what outlives an attempt.
    sa.Column("context", sa.LargeBinary(32), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)

# What was done on each of the site's days, against its own limits.
days = sa.Table(
    "days",
    metadata,
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("rounds", sa.BigInteger, nullable=False),
    sa.Column("sent", sa.BigInteger, nullable=False),
    sa.Column("received", sa.BigInteger, nullable=False),
)
