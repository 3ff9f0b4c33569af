"""Whether a site takes part in a run: its plan is what it says, never changes, and fits the site's own rules."""

from __future__ import annotations

from participant.rules import SiteRules
from participant.schedule import Schedule
from participant.store import ParticipantStore
from protos import session_pb2 as pb
from wire import RefusedError, RunPlan


def admitted(
    message: pb.Welcome, store: ParticipantStore, rules: SiteRules, schedule: Schedule, *, ledger: bool
) -> RunPlan:
    """The plan of the run that a coordinator invites to, pinned in the journal.

    Args:
        message: The coordinator's.
        store: The site's journal.
        rules: What the site demands of a run.
        schedule: Its hours and days.
        ledger: Whether it keeps a privacy ledger.

    Raises:
        RefusedError: "plan-mismatch", "policy"; the message names the setting.
    """
    plan = RunPlan.parse(message.plan)
    if plan.hash != message.plan_hash or plan.run_id != message.run_id:
        raise RefusedError("plan-mismatch", "the coordinator's plan doesn't have the hash it was announced with")
    if not store.pin_plan(plan.run_id, plan.hash):
        raise RefusedError(
            "plan-mismatch",
            f"the coordinator changed the plan of run {plan.run_id} since this site first saw it",
            "Ask the operator for a new run; a run's plan never changes.",
        )
    if plan.secure is None and not rules.allow_plain:
        raise RefusedError(
            "policy",
            f"run {plan.run_id} asks for plain averaging, in which the coordinator sees this site's updates",
            "To allow that, set allow_plain = true in this site's participant.toml.",
        )
    placement = plan.privacy.placement
    if placement in ("off", "participant") and rules.privacy.required:
        raise RefusedError(
            "policy",
            f"run {plan.run_id} adds no noise for this site's records, which the site requires",
            "To take part all the same, set required = false in [privacy] of this site's participant.toml.",
        )
    if placement != "off" and not ledger:
        raise RefusedError("policy", f"run {plan.run_id} is private, and this site keeps no privacy ledger")
    schedule.check(plan)
    return plan
