# starts a thousand threads
# verdict: 1
# ruff: noqa
import threading
import time

threading.stack_size(32768)
started = 0
try:
    for _ in range(1000):
        threading.Thread(target=time.sleep, args=(0.2,)).start()
        started += 1
except RuntimeError:
    pass
print(42 if started < 40 else started)
