"""What a killed process leaves behind is buried; what belongs to others is not."""

import subprocess
import sys
import time
from pathlib import Path

from rlreason import undertaker

DRIVER = """
import os, subprocess, sys, time
from pathlib import Path
from rlreason import undertaker
mark, folder = sys.argv[1], Path(sys.argv[2])
undertaker.keep_watch(mark, folder)
name, _, value = mark.partition("=")
sleep = [sys.executable, "-c", "import subprocess, sys; subprocess.run(['sleep', '600'])"]  # and a child of its own
helper = subprocess.Popen(sleep, env=os.environ | {name: value}, start_new_session=True)
# As Ray's agents: a process without the mark, whose log is in the folder.
subprocess.Popen(["sleep", "600"], env={}, start_new_session=True, stdout=(folder / "log").open("w"))
print(helper.pid, flush=True)
time.sleep(600)
"""


def test_everything_below_a_killed_driver_goes_and_nothing_else(tmp_path):
    folder = tmp_path / "private"
    folder.mkdir()
    (folder / "token").write_text("x")
    mark = f"RLREASON_TEST_MARK={tmp_path}"
    other = subprocess.Popen(["sleep", "600"], env={"RLREASON_TEST_MARK": f"{tmp_path}/other"})
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, mark, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        driver.stdout.readline()
        deadline = time.monotonic() + 10
        while len(undertaker.marked(mark.encode(), str(folder))) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        driver.kill()
        driver.wait()
        while undertaker.marked(mark.encode(), str(folder)) or folder.exists():
            assert time.monotonic() < deadline, "still there"
            time.sleep(0.02)
        assert other.poll() is None
    finally:
        driver.kill()
        other.kill()
        driver.wait()
        other.wait()


def test_it_needs_nothing_of_the_package():
    """It starts beside every run, and has to be there at once and cost nothing."""
    text = Path(undertaker.__file__).read_text()
    assert "from rlreason" not in text
    assert "import rlreason" not in text
