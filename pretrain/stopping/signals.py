"""What the outside asks of this process: SIGTERM, SIGUSR1 and SIGINT mean stop when it suits, a second one means at once."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType

from ...cli.errors import EXIT_RESUMABLE

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

_ECHO_S = 5.0  # a scheduler signals launcher and ranks alike, and the launcher passes it on: several arrivals of one request
_CLOSE = b"\0"


class StopSignals:
    """Notes the first signal of a block of code, and ends the process at a second one; to be entered by the main thread.

    The interpreter's own handler writes the number into a pipe, and a thread reads it: it does so, too, while the main thread waits
    in a collective that never ends. Arrivals within 5 s of the first belong to the same request. In other threads nothing is noted.
    """

    def __init__(self) -> None:
        self.is_saved = False
        """Set once all that there is to save has been: a further signal then ends the process with exit code 75."""
        self._first: tuple[int, float] | None = None

    @property
    def number(self) -> int:
        """The signal that asked for the end; 0: none yet."""
        return 0 if self._first is None else self._first[0]

    def __enter__(self) -> "StopSignals":
        self._is_listening = threading.current_thread() is threading.main_thread()
        if self._is_listening:
            reading, self._writing = os.pipe()
            os.set_blocking(self._writing, False)
            self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
            self._before = {number: signal.signal(number, _leave_it_to_the_thread) for number in SIGNALS}
            for number in SIGNALS:
                signal.siginterrupt(number, False)  # or calls inside gloo and NCCL fail with EINTR
            self._thread = threading.Thread(target=self._listen, args=(reading,), name="bamboo-signals", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._is_listening:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._wakeup_before)
            os.write(self._writing, _CLOSE)  # workers that were forked hold copies of this end, so closing it would not be seen
            self._thread.join()
            os.close(self._writing)

    def _listen(self, reading: int) -> None:
        while True:
            for number in os.read(reading, 64):
                if number == _CLOSE[0]:
                    os.close(reading)
                    return
                if number in SIGNALS:
                    self._take(number, time.monotonic())

    def _take(self, number: int, now: float) -> None:
        name = signal.Signals(number).name
        if self.is_saved:
            os._exit(EXIT_RESUMABLE)
        if self._first is None:
            self._first = (number, now)
            _say(f"{name}: stopping at the next boundary, with the state saved; another one after {_ECHO_S:.0f} s ends at once")
        elif now - self._first[1] > _ECHO_S:
            _say(f"a second signal, {name}: ended at once; what was done since the last checkpoint is lost")
            os._exit(128 + number)


def _leave_it_to_the_thread(number: int, frame: FrameType | None) -> None:
    """Python's part of the handler; the number is in the pipe by now."""


def _say(line: str) -> None:
    os.write(2, f"{line}\n".encode())  # in one piece, whatever the main thread is writing
