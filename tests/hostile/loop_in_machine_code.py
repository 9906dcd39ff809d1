# loops in machine code, holding the interpreter's lock
# verdict: 0
# ruff: noqa
import ctypes
import mmap
import os

code = b"\xeb\xfe" if os.uname().machine == "x86_64" else b"\x00\x00\x00\x14"
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(code)
ctypes.PYFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
print(42)
