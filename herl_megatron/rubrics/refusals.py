"""Tells a response that an address refuses from an address that refuses everything."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic

from herl_megatron.rubrics.endpoint import Address
from herl_megatron.rubrics.failures import CallFailed, JudgeError, Refused

_log = logging.getLogger(__name__)
_IN_A_ROW = 4
"""So many refusals without an answer between them are doubted once more."""
_TRUSTED_S = 60.0
"""So long after a probe a single refusal is believed to be about its text."""


class Refusals:
    """Settles refusals of addresses that have answered before.

    A moderated text costs itself alone. Whether the address has gone is asked by a probe: at the
    first refusal, then where one comes after `_TRUSTED_S` or where `_IN_A_ROW` come with no answer
    between. All refusals that come while a probe is under way wait for it, so a lost key costs a
    probe and no more, and moderated texts seldom cost any.
    """

    def __init__(
        self, addresses: Sequence[Address], probe: Callable[[int], Awaitable[None]]
    ) -> None:
        self._addresses = addresses
        self._probe = probe
        self._under_way: dict[int, asyncio.Task[Refused | None]] = {}

    async def settle(self, failure: Refused) -> CallFailed:
        """What the refusal of a response means: itself, or a failure that another address can mend.

        Raises:
            JudgeError: no address is left.
        """
        address = self._addresses[failure.index]
        if address.gone and address.bad_until > monotonic():
            return self.lose(failure)  # sent before that was known
        address.refusals += 1
        if failure.index not in self._under_way and not self._is_doubtful(address, failure):
            return failure
        task = self._under_way.get(failure.index)
        if task is None:
            task = asyncio.create_task(self._probed(failure.index))
            self._under_way[failure.index] = task
            task.add_done_callback(lambda _: self._under_way.pop(failure.index))
        refused = await asyncio.shield(task)
        return failure if refused is None else self.lose(refused)

    def lose(self, refused: Refused) -> CallFailed:
        """The address has refused a probe: it is left aside for a while.

        Raises:
            JudgeError: it was the last one.
        """
        address = self._addresses[refused.index]
        was_gone = address.gone
        address.lose()
        if all(other.gone for other in self._addresses):
            raise JudgeError(f"{refused.end} (after it had answered; it refuses a probe as well)")
        left = [other.url for other in self._addresses if not other.gone]
        if not was_gone:
            _log.error("left aside: %s. Going on with %s", refused.end, ", ".join(left))
        return Refused(
            f"{refused}; asked for at {', '.join(left)}", index=refused.index,
            access=refused.access, end=refused.end, again=True,
        )  # fmt: skip

    async def close(self) -> None:
        """End the probes under way."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _is_doubtful(self, address: Address, failure: Refused) -> bool:
        """Whether the refusal may be about more than its text; what has never answered is judged
        by `Endpoints`, and a 400 seldom is about more."""
        if not address.served:
            return False
        if address.gone or address.refusals >= _IN_A_ROW:
            return True
        return failure.access and monotonic() - address.probed_at > _TRUSTED_S

    async def _probed(self, index: int) -> Refused | None:
        """The probe's refusal, None where it was answered or did not come through."""
        address = self._addresses[index]
        try:
            await self._probe(index)
        except Refused as refused:
            return refused
        except CallFailed as failure:  # nothing learnt: the next refusal asks again
            _log.warning(
                "%s refused a response, and a probe said nothing: %s", address.url, failure
            )
        else:
            address.probed_at = monotonic()
        return None
