"""Threads beside other processes: what is measured, what is held, and whose word counts."""

import ast
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import cpu
import tinyr1

HERE = Path(__file__).resolve().parent.parent


def teams():
    return [thread for thread in threading.enumerate() if thread._target is cpu.one_team]


def wait_until(true):
    for _ in range(2000):
        if true():
            return True
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="Linux tells how long threads wait")
def test_waiting_is_measured_for_all_threads():
    before = cpu.waited()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    assert cpu.waited() >= before >= 0
    stop.set()
    thread.join()


def test_a_busy_machine_gets_a_team_until_it_is_quiet(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    watch = cpu.Watch()
    for waiting, busy in ((0.1, False), (0.9, True), (0.5, True), (0.1, True), (0.01, False), (0.3, True)):
        watch.update(waiting)
        assert watch.busy is busy
        assert wait_until(lambda busy=busy: len(teams()) == busy)
    watch.update(0.0)
    assert wait_until(lambda: not teams())


@pytest.mark.parametrize("threads, cores, count", [(2, 2, 1), (4, 4, 1), (4, 8, 2), (2, 8, 7)])
def test_the_teams_have_more_threads_than_there_are_cores(monkeypatch, threads, cores, count):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    watch = cpu.Watch()
    watch.update(1.0)
    assert wait_until(lambda: len(teams()) == count)
    assert threads + count * (threads - 1) > cores >= threads + (count - 1) * (threads - 1)
    watch.update(0.0)
    assert wait_until(lambda: not teams())


@pytest.mark.parametrize("name", ["", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"])
def test_what_the_user_has_set_stays(name):
    program = (
        "import cpu, os; cpu.start_watch(); print(os.environ.get('KMP_BLOCKTIME'), cpu.watch.is_alive())"
    )
    env = {k: v for k, v in os.environ.items() if k not in (*cpu.WAITING, "OMP_NUM_THREADS")}
    env |= {"OMP_NUM_THREADS": "2"} | ({name: "passive" if "POLICY" in name else "7"} if name else {})
    done = subprocess.run([sys.executable, "-c", program], env=env, cwd=HERE, capture_output=True, text=True)
    alive = not name and Path("/proc/self/schedstat").exists()
    assert done.stdout.split() == [{"": "1", "KMP_BLOCKTIME": "7"}.get(name, "None"), str(alive)], done.stderr


@pytest.mark.parametrize("program", ["tinyr1.py", "minibase.py"])
def test_the_programs_import_it_first(program):
    imports = [n for n in ast.parse((HERE / program).read_text()).body if isinstance(n, ast.Import)]
    assert imports[0].names[0].name == "cpu"


def test_the_bar_says_that_the_machine_is_busy(tiny, bandit, tmp_path, capsys, monkeypatch):
    argv = ["train", "--model", tiny, "--task", bandit, "--out", str(tmp_path), "--steps", "1"]
    argv += "--prompts 2 --group 2 --max_new_tokens 4 --probe_every 0 --eval_samples 1 --overwrite".split()
    for busy in (False, True):
        monkeypatch.setattr(cpu.watch, "busy", busy)
        assert tinyr1.main(argv) == 0
        assert ("the machine is busy" in capsys.readouterr().err) == busy
