"""Fetching files before they are read, one at a time, by a thread that ends when nothing was expected for a while."""

import contextlib
import threading
import time
from collections.abc import Sequence

from ...cli.errors import BambooError
from .cache import Remote, ShardCache

_AGAIN_AFTER_S = 5.0
_IDLE_S = 10.0  # the thread keeps its client, and so its connections, between one shard and the next


class Prefetcher:
    """Fetches what is expected into a cache, the soonest first, as far as it fits; what goes wrong is for the read to say."""

    def __init__(self, cache: ShardCache) -> None:
        self._cache = cache
        self._changed = threading.Condition()
        self._waiting: list[Remote] = []
        self._running = False
        self._last: Sequence[Remote] = ()
        self._last_s = -_AGAIN_AFTER_S

    def expect(self, soon: Sequence[Remote]) -> None:
        """Replaces what is to be fetched; what is here already counts as used, so that it does not go first."""
        now = time.monotonic()
        if soon == self._last and now - self._last_s < _AGAIN_AFTER_S:
            return
        self._last, self._last_s = list(soon), now
        missing, room = [], self._cache.limit_bytes
        for wanted in soon:
            room -= wanted.size_bytes
            if room < 0:  # more would push out what is needed sooner
                break
            if not self._cache.touch(wanted):  # at every call: what is not touched now may be pushed out by what comes next
                missing.append(wanted)
        with self._changed:
            self._waiting = missing
            if missing and not self._running:
                self._running = True
                threading.Thread(target=self._run, name="bamboo-prefetch", daemon=True).start()
            self._changed.notify()

    def reset_after_fork(self) -> None:
        """In a forked child, before any of its threads: there is no thread, and nothing to fetch yet."""
        self.__init__(self._cache)  # type: ignore[misc]  # the child begins anew

    def _run(self) -> None:
        try:
            while (wanted := self._next()) is not None:
                with contextlib.suppress(BambooError, OSError):  # the read that needs it fetches it itself, and says why it cannot
                    self._cache.prefetch(wanted)
        except BaseException:  # a defect, which is raised on: the next that is expected shall start a thread of its own
            with self._changed:
                self._running = False
            raise

    def _next(self) -> Remote | None:
        """Returns the next file to fetch, waiting for one; None, when there was none for long: the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting), _IDLE_S)
            if self._waiting:
                return self._waiting.pop(0)
            self._running = False
            return None
