"""Faults that are put into the program on purpose are seen by the tests (`mutants.py`)."""

import subprocess
import sys

import pytest
from by_path import ROOT


def _run(*arguments):
    command = [sys.executable, "tests/mutants.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_fault_can_still_be_put_in():
    done = _run("--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_tests_see_the_faults():
    """Hours: about a minute a fault."""
    done = _run()
    assert done.returncode == 0, done.stdout + done.stderr
