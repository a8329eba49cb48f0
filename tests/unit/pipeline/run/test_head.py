"""A head whose port closes is lost: an error in the main thread; in processes of their own, since it uses a signal."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
PROGRAM = """
import signal, socket, sys, threading, time
from dladiff.errors import StorageError
from pipeline.run import head
head.LOST_S, head.LOOK_S, head.END_S = 0.5, 0.05, 1.0
server = socket.create_server(("127.0.0.1", 0))
watch = head.HeadWatch("127.0.0.1:%d" % server.getsockname()[1])
try:
    with watch:
        time.sleep(1.5)
        {body}
    print("left", watch.lost, signal.getsignal(head.SIGNAL) is signal.SIG_DFL)
except StorageError as error:
    print("lost", watch.lost, error)
    {after}
"""


def outcome(body: str, after: str = "pass") -> tuple[int, str, str]:
    program = PROGRAM.format(body=body, after=after)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def test_a_head_that_answers_is_left_alone() -> None:
    assert outcome("pass") == (0, "left False True", "")


def test_the_main_thread_gets_an_error_while_it_waits() -> None:
    code, text, _ = outcome("server.close(); threading.Event().wait(60)")
    assert code == 0 and text.startswith("lost True the head of the Ray cluster is gone")


def test_an_error_of_ray_that_comes_first_is_explained() -> None:
    code, text, _ = outcome("server.close(); raise RuntimeError('rpc')")
    assert code == 0 and text.startswith("lost True the head of the Ray cluster is gone")


def test_an_error_beside_a_head_that_answers_stays() -> None:
    code, text, errors = outcome("raise RuntimeError('other')")
    assert (code, text) == (1, "") and "RuntimeError: other" in errors


@pytest.mark.parametrize("body", ["threading.Event().wait(60)", "raise RuntimeError('rpc')"])
def test_a_process_that_does_not_end_is_ended(body: str) -> None:
    code, _, errors = outcome(f"server.close(); {body}", after="time.sleep(60)")
    assert code == 3 and errors.startswith("error: the head of the Ray cluster is gone")
