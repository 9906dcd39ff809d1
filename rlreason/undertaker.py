"""Buries what a killed driver leaves behind: its Ray, its actors, what those started, and their folder. For cluster.py.

Run as a file, without the package, and by nothing but its standard input: that ends when the driver does, however it does.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PATIENCE = 10.0  # seconds in which everything has to be found


def keep_watch(mark: str, folder: Path) -> None:
    """Start one for this process. `mark`: an entry of the environment, NAME=value, that all below this process have and
    nobody else. `folder`: is removed in the end."""
    # A session of its own, so that a Ctrl-C is not for it. The pipe is never closed here: the kernel does it.
    command = [sys.executable, "-I", "-S", __file__, mark, str(folder)]
    subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                     start_new_session=True, env={})  # fmt: skip


def bury(mark: bytes, folder: str, driver: int) -> None:
    """Kill every process that bears the mark, until there is none, and remove the folder. `driver`: is about to end."""
    deadline = time.monotonic() + PATIENCE
    quiet = 0
    while quiet < 3 and time.monotonic() < deadline:  # one may be just starting another
        found = [process for process in marked(mark, folder) if process != driver]
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        quiet = 0 if found else quiet + 1
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def marked(mark: bytes, folder: str) -> list[int]:
    """The processes whose environment has this entry, or that have a file of `folder` open: Ray's agents write their title
    over their environment. Zombies have neither, and this process is none of them."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                with open(f"/proc/{entry.name}/environ", "rb") as file:
                    if mark in file.read().split(b"\0") or _holds(entry.path, folder):
                        found.append(int(entry.name))
            except OSError:  # it has ended, or is somebody else's
                continue
    return found


def _holds(process: str, folder: str) -> bool:
    for descriptor in os.scandir(f"{process}/fd"):
        try:
            if os.readlink(descriptor.path).startswith(f"{folder}/"):
                return True
        except OSError:  # it was closed just now
            continue
    return False


if __name__ == "__main__":
    driver = os.getppid()
    sys.stdin.buffer.read()
    bury(os.fsencode(sys.argv[1]), sys.argv[2], driver)
