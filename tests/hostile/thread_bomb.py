# starts threads without end
# verdict: 0
# ruff: noqa
import threading
import time

threading.stack_size(32768)
started = 0
while True:
    try:
        threading.Thread(target=time.sleep, args=(60,)).start()
        started += 1
    except RuntimeError:
        if started > 100:
            print(42)  # a wall that is not there
        time.sleep(0.01)
