"""The first SIGINT or SIGTERM interrupts; later ones do not cut off the cleanup."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.process.interrupts import install, interrupted, interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_interrupts_and_later_ones_are_ignored(number: signal.Signals) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    cleaned = False
    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            try:
                os.kill(os.getpid(), number)
                time.sleep(60)
            finally:
                for other in (number, signal.SIGTERM, signal.SIGINT):
                    os.kill(os.getpid(), other)
                cleaned = True
    assert cleaned and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with interruptible(), pytest.raises(KeyboardInterrupt):  # the next command is interrupted again
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    signal.signal(signal.SIGINT, before)


def test_an_interruption_that_ray_noticed_counts_as_the_first() -> None:
    with interruptible():
        assert isinstance(interrupted(), KeyboardInterrupt)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)


def test_an_ignored_sigint_stays_ignored_and_other_threads_set_nothing() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible():
        os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    thread = threading.Thread(target=lambda: (install(), interruptible().__enter__()))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_command_that_is_terminated_twice_prints_one_line(tmp_path: Path) -> None:
    code = """
import os, signal, sys, time
from pipeline.run import plan
def struck(*_, **__):
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        print("cleaning", flush=True)
        time.sleep(1)
        print("cleaned", flush=True)
plan.make_plan = struck
from pipeline.cli.main import main
main(["plan", "--input", sys.argv[1], "--output", sys.argv[1] + "/out"])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in ("begun", "cleaning"):
        assert process.stdout.readline().strip() == line
        os.killpg(process.pid, signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert out == "cleaned\n"
    assert errors == "stopped: what is done is kept; run the same command again to continue\n"
    assert process.returncode == 1
