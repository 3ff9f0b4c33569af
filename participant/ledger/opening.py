"""A joined site's ledger, also after the site has got another key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from participant.ledger.store import BudgetLedger
from participant.site import IDENTITY, LEDGER
from privacy.ledger import LedgerError
from wire import load_signing_key, save_signing_key

if TYPE_CHECKING:
    from participant.site import Site

_PREVIOUS: Final = "previous.key"


def open_ledger(site: Site) -> BudgetLedger:
    """The ledger of a site; a change of keys that a crash has broken off is finished first.

    Raises:
        LedgerError, ConfigError, DataError, ResourceError: As :class:`BudgetLedger`.
    """
    path, previous = site.folder / LEDGER, site.folder / IDENTITY / _PREVIOUS
    if not previous.exists():
        return BudgetLedger(path, site.signing_key, site=site.name)
    try:
        ledger = BudgetLedger(path, site.signing_key, site=site.name)
    except LedgerError:
        old = load_signing_key(site.folder / IDENTITY, _PREVIOUS)
        ledger = BudgetLedger(path, old, site=site.name)
        ledger.hand_over(site.signing_key)
    previous.unlink()
    return ledger


def ledger_lines(site: Site) -> int:
    """How many lines a site's ledger has.

    Raises:
        LedgerError: It can't be read, so that it can't be handed over either.
    """
    if not (site.folder / LEDGER).exists():
        return 0
    ledger = open_ledger(site)
    try:
        return ledger.book().count
    finally:
        ledger.close()


def keep_key(site: Site) -> None:
    """Keep a site's key until :func:`open_ledger` has handed the ledger over to the next one."""
    save_signing_key(site.folder / IDENTITY, site.signing_key, _PREVIOUS)
