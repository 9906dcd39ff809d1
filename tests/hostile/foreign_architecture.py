# calls fork through the kernel's 32-bit door, whose calls have other numbers
# verdict: 0
# ruff: noqa
import ctypes
import mmap
import os

if os.uname().machine == "x86_64":  # mov eax, 2; int 0x80; ret
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x02\x00\x00\x00\xcd\x80\xc3")
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
    print(42)
