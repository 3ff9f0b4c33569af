"""What is refused before any training begins: a plan, a model or a loss that couldn't keep the promise."""

from __future__ import annotations


class PrivacyError(ValueError):
    """A private training that can't keep its promise as it stands.

    It carries what the front door prints: ``code``, ``message``, ``hint`` and ``exit_code``.

    Args:
        code: For programs, for example "delta-too-large".
        message: What is wrong, with the setting's name.
        hint: What to change.
    """

    exit_code: int = 3

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[PrivacyError], tuple[str, str, str]]:
        """A worker process hands it over whole."""
        return type(self), (self.code, self.message, self.hint)
