"""The coordinator's tables, as the newest migration leaves them.

A test compares these definitions with what the migrations build, so they can't drift apart.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

HEAD: Final = "0004"

metadata = sa.MetaData()

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run_id", sa.String(255), nullable=False, unique=True),
    sa.Column("plan", sa.LargeBinary, nullable=False),
    sa.Column("plan_hash", sa.LargeBinary(32), nullable=False),
    sa.Column("created_s", sa.Double, nullable=False),
)

transitions = sa.Table(
    "transitions",
    metadata,
    sa.Column("run_id", sa.String(255), sa.ForeignKey("runs.run_id"), primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("at_s", sa.Double, nullable=False),
)

checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("run_id", sa.String(255), sa.ForeignKey("runs.run_id"), primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    # JSON list of hexadecimal digests.
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("created_s", sa.Double, nullable=False),
)

members = sa.Table(
    "members",
    metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("certificate_pem", sa.LargeBinary, nullable=False),
    sa.Column("serial", sa.String(64), nullable=False),
    sa.Column("since_s", sa.Double, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    # NULL until enrolment.
    sa.Column("signing_key", sa.LargeBinary(32), nullable=True),
    sa.Column("signing_proof", sa.LargeBinary(96), nullable=True),
)

invitations = sa.Table(
    "invitations",
    metadata,
    sa.Column("name", sa.String(255), sa.ForeignKey("members.name"), primary_key=True),
    sa.Column("secret_hash", sa.LargeBinary(32), primary_key=True),
    sa.Column("expires_s", sa.Double, nullable=False),
    sa.Column("used_s", sa.Double, nullable=True),
)

refusals = sa.Table(
    "refusals",
    metadata,
    sa.Column("code", sa.String(64), primary_key=True),
    sa.Column("peer", sa.String(255), primary_key=True),
    sa.Column("total", sa.BigInteger, nullable=False),
)

# The member list, as the federation root signed it.
member_entries = sa.Table(
    "member_entries",
    metadata,
    sa.Column("index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("signature", sa.LargeBinary(64), nullable=False),
)

# The statements of secure sums in the order in which they took effect; those of rounds that are over are forgotten.
statements = sa.Table(
    "statements",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run_id", sa.String(255), sa.ForeignKey("runs.run_id"), nullable=False),
    sa.Column("context", sa.LargeBinary(32), nullable=False),
    # Empty for the coordinator's own.
    sa.Column("sender", sa.String(255), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("signature", sa.LargeBinary(64), nullable=False),
    sa.Column("at_s", sa.Double, nullable=False),
)

# Each participant's unused prekeys, as it signed them last.
prekeys = sa.Table(
    "prekeys",
    metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("signature", sa.LargeBinary(64), nullable=False),
)

# What each site's privacy budget looked like last, as it signed it.
budgets = sa.Table(
    "budgets",
    metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("signature", sa.LargeBinary(64), nullable=False),
)

# The log of results of secure sums: a hash chain over all runs.
results = sa.Table(
    "results",
    metadata,
    sa.Column("index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("run_id", sa.String(255), sa.ForeignKey("runs.run_id"), nullable=False),
    sa.Column("round", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("signature", sa.LargeBinary(64), nullable=False),
)
