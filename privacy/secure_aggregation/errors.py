"""What secure aggregation can refuse, in words that name the rule and the setting behind it."""

from __future__ import annotations


class SecureAggregationError(ValueError):
    """A value, message or file that secure aggregation can't use.

    It carries what the front door prints: ``code``, ``message``, ``hint`` and ``exit_code``.

    Args:
        code: Stable name of the reason, kebab-case.
        message: What happened, naming the participant or field.
        hint: What to do next.
    """

    exit_code: int = 4

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class Refusal(SecureAggregationError):
    """A party's decision not to go on, which it signs and sends (see ``statements.Refused``).

    Args:
        code: Stable name of the rule that was broken.
        message: What was asked and what the rule allows.
        setting: The site's setting that decides, as ``[section] key``; empty where no setting can allow it.
    """

    def __init__(self, code: str, message: str, setting: str = "") -> None:
        hint = f"The site's setting {setting} decides." if setting else "No setting allows it."
        super().__init__(code, message, hint)
        self.setting = setting
