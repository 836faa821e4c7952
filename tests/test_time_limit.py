"""Every test has a time limit: a hang is a failure with a name, and the other tests go on."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
HANGS = """\
import gc, threading, time
import pytest

LOCK = threading.Lock()
LOCK.acquire()


@pytest.fixture(autouse=True, scope="module")
def helper():
    event = threading.Event()
    thread = threading.Thread(target=event.wait, name="a helper")
    thread.start()
    yield
    event.set()


@pytest.fixture
def fixture():
    time.sleep(30)


@pytest.fixture
def teardown():
    yield
    LOCK.acquire()


class Client:
    def __init__(self):
        self.cycle = self

    def __del__(self):
        LOCK.acquire()


def test_lock():
    LOCK.acquire()


def test_sleep():
    time.sleep(30)


def test_fixture(fixture):
    pass


def test_teardown(teardown):
    pass


def test_finalizer():
    Client()
    gc.collect()


def test_thread():
    thread = threading.Thread(target=time.sleep, args=[30], daemon=True)
    thread.start()
    thread.join()


def test_good():
    pass
"""
EXPECTED = {
    "FAILED": {"lock", "sleep", "finalizer", "thread"},
    "ERROR": {"fixture", "teardown"},
    "PASSED": {"good", "teardown"},
}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_a_hang_is_a_failure_with_a_name_and_all_stacks(processes, tmp_path):
    (tmp_path / "test_hangs.py").write_text(HANGS)
    options = ["-c", PROJECT / "pyproject.toml", "--rootdir", tmp_path, "-rA", "--timeout", "1"]
    command = [sys.executable, "-m", "pytest", *options, *processes, "test_hangs.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    for outcome, names in EXPECTED.items():
        told = re.findall(rf"(?m)^{outcome} .*::test_(\w+)", done.stdout)
        assert set(told) == names, done.stdout
    assert done.stdout.count("Timeout (>1.0s) from pytest-timeout") >= 6
    assert (done.stdout + done.stderr).count("Stack of a helper") >= 6


@pytest.mark.slow
def test_a_hang_that_no_signal_reaches_ends_the_process_with_all_stacks(tmp_path):
    text = "import signal, time\n\n\ndef test_deaf():\n    "
    text += "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\n    time.sleep(30)\n"
    (tmp_path / "test_deaf.py").write_text(text)
    options = ["-c", PROJECT / "pyproject.toml", "--rootdir", tmp_path, "--timeout", "1"]
    options += ["-o", "faulthandler_timeout=2", "-v", "test_deaf.py"]
    command = [sys.executable, "-m", "pytest", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert "test_deaf.py::test_deaf" in done.stdout
    assert re.search(r"Timeout.*\n.*most recent call first.*\n.*in test_deaf", done.stderr)
