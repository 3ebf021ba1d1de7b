"""How this process uses the CPU: waiting threads and freed memory. Import this before torch.

OpenMP threads spin at the end of a parallel region until the last of them arrives. On an idle machine nothing
is faster. When another process takes a core, one thread loses its core for milliseconds, the others spend
their own time slices waiting for it, and the speed falls to a tenth (plots/reference/bench.md).

- libgomp (torch's wheels for Linux) cuts its spinning to 1,000 turns while a process has more OpenMP threads
  than the machine has cores. `Watch` measures how long our threads wait for a core; while they wait long, it
  keeps one more team of sleeping threads. The team that computes, and so every result, stays the same.
- libiomp and libomp (conda, macOS) spin for KMP_BLOCKTIME milliseconds. The default is 200. 1 costs nothing
  on a quiet machine and keeps nearly half of the speed on a busy one.

If the user has set one of OpenMP's variables for waiting, nothing is changed.
"""

import ctypes
import os
import threading
import time
from pathlib import Path

WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
CHOSEN_BY_USER = any(name in os.environ for name in WAITING)
if not CHOSEN_BY_USER:
    os.environ["KMP_BLOCKTIME"] = "1"

import torch  # noqa: E402

# between two measurements
SECONDS = 2.0
# Seconds per second that all our threads together wait for a core. Measured: up to 0.02 on a quiet machine,
# 0.9 with another busy process, and 0.5 then with the extra team.
BUSY, QUIET = 0.2, 0.05


def waited() -> float:
    """Seconds that the threads of this process were ready to run but had no core. Errors: OSError on systems
    other than Linux, which do not tell.
    """
    total = 0
    for thread in Path("/proc/self/task").iterdir():
        try:
            total += int((thread / "schedstat").read_text().split()[1])
        # the thread has ended
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total / 1e9


class Watch(threading.Thread):
    """Measures whether the machine is busy, and keeps extra teams of threads while it is."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="watch")
        self.busy = False
        self.quiet_again = threading.Event()

    def run(self) -> None:
        before = waited()
        while True:
            time.sleep(SECONDS)
            now = waited()
            self.update((now - before) / SECONDS)
            before = now

    def update(self, waiting: float) -> None:
        """Follow the measured waiting, in seconds per second."""
        if not self.busy and waiting > BUSY:
            self.busy = True
            self.start_teams()
        elif self.busy and waiting < QUIET:
            self.busy = False
            self.quiet_again.set()

    def start_teams(self) -> None:
        """Start teams until the process has more OpenMP threads than cores; they end when it is quiet."""
        self.quiet_again = threading.Event()
        threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
        for _ in range((cores - threads) // (threads - 1) + 1):
            threading.Thread(target=one_team, args=(self.quiet_again,), daemon=True).start()


def one_team(quiet_again: threading.Event) -> None:
    """Run one parallel region; its team of threads sleeps until this thread ends."""
    torch.zeros(1 << 17).add_(1)
    quiet_again.wait()


watch = Watch()


def start_watch() -> None:
    """Start watching where it can help: several threads, Linux, no variable set by the user."""
    if watch.is_alive() or CHOSEN_BY_USER or torch.get_num_threads() == 1:
        return
    try:
        waited()
    except OSError:
        return
    watch.start()


def keep_memory() -> None:
    """Tell glibc to keep freed memory: on some machines, returning every large temporary to the kernel
    halves the speed.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    # not Linux, or not glibc
    except (OSError, AttributeError):
        return
    # thresholds of mmap and of trimming, padding at the top
    for parameter, value in ((-3, 1 << 30), (-1, (1 << 31) - 1), (-2, 1 << 27)):
        mallopt(parameter, value)


def prepare() -> None:
    """Every command calls this first."""
    keep_memory()
    start_watch()
