"""Processes that can be killed, for computations that may never end: asked by lines of JSON over pipes.

Plain subprocesses of a small file: nothing is forked from a process that has torch's threads, nothing depends
on signals or on the thread that asks, and a worker whose parent dies reads the end of its input and ends.
"""

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time


class WorkerError(RuntimeError):
    """No reply: the time is up, or the worker died."""


class Worker:
    """One process, started when first asked and again after each death."""

    def __init__(self, command):
        self.command, self.process = command, None

    def start(self):
        self.ready, self.lines = False, queue.SimpleQueue()
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent
        )  # fmt: skip
        args = (self.process.stdout, self.lines)
        threading.Thread(target=self._listen, args=args, daemon=True).start()

    @staticmethod
    def _listen(pipe, lines):
        with pipe:
            for line in pipe:
                lines.put(line)
        lines.put(None)

    def _line(self, deadline):
        try:
            line = self.lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise WorkerError("time is up") from None
        if line is None:
            raise WorkerError("time is up or out of memory: the worker died")
        return line

    def wait_ready(self, deadline):
        if self.process is None or self.process.poll() is not None:
            self.start()
        if not self.ready:
            self._line(deadline)
            self.ready = True

    def ask(self, request, deadline, seconds):
        try:
            self.wait_ready(deadline)
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            return json.loads(self._line(min(deadline, time.monotonic() + seconds)))
        except (WorkerError, OSError, ValueError) as error:
            if self.process.poll() is not None or self.ready:  # one that is still starting may finish that
                self.kill()
                self.start()  # returns at once; ready when the next question comes
            raise error if isinstance(error, WorkerError) else WorkerError(str(error)) from error

    def kill(self):
        if self.process is not None:
            with contextlib.suppress(OSError):
                self.process.kill()
                self.process.stdin.close()
            self.process.wait()
            self.process = None


class Workers:
    """`count` workers that take turns, so that one restarts while the other answers.

    command: argument list of a process that writes a line when it is ready, then a line of JSON for each.
    seconds: limit of one answer; total: limit of all that `ask` may take, a restart included.
    """

    def __init__(self, command, count, seconds, total):
        self.command, self.count, self.seconds, self.total = command, count, seconds, total
        self._reset()
        atexit.register(self.stop)
        if hasattr(os, "register_at_fork"):  # a forked child has workers of its own
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self):
        self.started, self.starting = False, threading.Lock()
        self.all = [Worker([sys.executable, *self.command, str(self.seconds)]) for _ in range(self.count)]
        self.idle = queue.Queue()
        for worker in self.all:
            self.idle.put(worker)

    def ask(self, request):
        """The reply to a JSON-able request. Errors: WorkerError, within `total` seconds (the first question
        also waits until a worker has started).
        """
        with self.starting:
            if not self.started:
                self.start()
        deadline = time.monotonic() + self.total
        try:
            worker = self.idle.get(timeout=self.total)
        except queue.Empty:
            raise WorkerError("all workers are busy") from None
        try:
            return worker.ask(request, deadline, self.seconds)
        finally:
            self.idle.put(worker)

    def start(self, patience=60.0):
        """Start all and wait until one is ready. Errors: WorkerError."""
        self.started = True
        for worker in self.all:
            if worker.process is None:
                worker.start()
        first = self.idle.get()
        try:
            first.wait_ready(time.monotonic() + patience)
        finally:
            self.idle.put(first)

    def stop(self):
        """Kill all; they start again when asked."""
        for worker in self.all:
            worker.kill()
