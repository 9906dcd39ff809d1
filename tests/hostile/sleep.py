# sleeps, with its input open
# verdict: 0
# ruff: noqa
import time

time.sleep(3600)
print(42)
