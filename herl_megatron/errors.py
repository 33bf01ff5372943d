"""What an error that ends a run says about the policy.

After most errors the trainer still holds a policy worth keeping, and a resumed run goes on. After
some the policy itself is lost: it is dead, or computes NaN though every weight is finite. Whoever
finds that marks the error, and everything that follows from it (`run.rescue`, the hint of
`RunFolder`) looks at the mark alone, so that no guard can be forgotten there.
"""

from __future__ import annotations


class RunError(RuntimeError):
    """Ends a run.

    Attributes:
        policy_lost: whether the policy's own weights are to blame. It survives pickling, so that it
            comes along from a worker's process (`cluster.health`).
    """

    def __init__(self, message: str, *, policy_lost: bool = False) -> None:
        super().__init__(message)
        self.policy_lost = policy_lost


class LostPolicyError(RunError):
    """The policy is lost, whatever the message says."""

    def __init__(self, message: str) -> None:
        super().__init__(message, policy_lost=True)


class SavedForResume(RuntimeError):
    """The run was asked to stop; all that it did is in a checkpoint."""


class PausedByBudget(SavedForResume):
    """The judge's budget is spent; all that was done is in a checkpoint."""


def policy_lost(error: BaseException | None) -> bool:
    """Whether this error, or one that it was raised from, says so."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, RunError) and error.policy_lost:
            return True
        seen.add(id(error))
        error = error.__cause__
    return False
