"""What can go wrong with a judge, by class."""

from __future__ import annotations

from typing import Literal

FailureKind = Literal[
    "transport", "timeout", "rate_limit", "server", "invalid", "canary", "evidence", "refused"
]
RETRIED: frozenset[FailureKind] = frozenset(
    ("transport", "timeout", "rate_limit", "server", "invalid", "canary", "evidence")
)


class JudgeError(RuntimeError):
    """The judge cannot be used and waiting or asking again will not help: the run ends."""


class CallFailed(Exception):
    """One call gave no answer that can be used; `tokens` in and out were spent all the same.

    answered: the model did answer, so that asking again costs as much as a first time.
    again: whether asking again may help.
    """

    def __init__(
        self,
        kind: FailureKind,
        message: str,
        *,
        retry_after_s: float = 0.0,
        tokens: tuple[int, int] = (0, 0),
        answered: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after_s = retry_after_s
        self.tokens = tokens
        self.answered = answered
        self.again = kind in RETRIED


class Refused(CallFailed):
    """The address `index` refused a request, for its text or because it refuses all of them.

    access: it says so by a status that is about key, model or address (`end` has it in words).
    """

    def __init__(
        self, message: str, *, index: int, access: bool, end: str, again: bool = False
    ) -> None:
        super().__init__("refused", message)
        self.index = index
        self.access = access
        self.end = end
        self.again = again


class ErrorReply(Exception):
    """A server's error: its words, an HTTP status (0: none that is known), the wait it asks for.

    about_text: it names the text itself as the reason (a content filter).
    """

    def __init__(
        self, said: str, *, status: int, retry_after_s: float = 0.0, about_text: bool = False
    ) -> None:
        super().__init__(said)
        self.said = said
        self.status = status
        self.retry_after_s = retry_after_s
        self.about_text = about_text
