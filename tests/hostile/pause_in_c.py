# waits in C for ever, all signals blocked
# verdict: 0
# ruff: noqa
import ctypes
import signal

signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
ctypes.PyDLL(None).pause()
print(42)
