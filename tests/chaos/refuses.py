"""A file system that refuses: an audit hook of the interpreter answers in its place when `checkpoint.write_atomic` asks it.

python refuses.py FOLDER EVENT ANSWER: what is told, then how often it was asked and what the folder holds after that.
"""

import errno
import os
import sys
from pathlib import Path

from rlreason import checkpoint
from rlreason.errors import StorageError

folder, event, answer = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
asked: list[str] = []
inside = False


def refuse(what, arguments):
    global inside
    if what != event or inside or not str(arguments[0]).startswith(str(folder)):
        return
    asked.append(what)
    if answer == "stale once" and len(asked) == 1:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    if answer == "lost reply" and len(asked) == 1:  # it was renamed, and the client does not know
        inside = True
        os.replace(*arguments[:2])
        inside = False
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    if answer.isdigit():
        raise OSError(int(answer), os.strerror(int(answer)))


(folder / "a.json").write_text("old")
sys.addaudithook(refuse)
try:
    checkpoint.write_atomic(folder / "a.json", "new")
except StorageError as error:
    print(error)
inside = True
print(len(asked), (folder / "a.json").read_text(), sorted(os.listdir(folder)))
