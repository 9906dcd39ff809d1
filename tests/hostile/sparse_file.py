# makes a file of ten terabytes with nothing in it, and allocates a gigabyte
# verdict: 1
# ruff: noqa
import os

done = []
for make in (lambda fd: os.ftruncate(fd, 10 << 40), lambda fd: os.posix_fallocate(fd, 0, 1 << 30)):
    try:
        fd = os.open("sparse", os.O_CREAT | os.O_RDWR)
        make(fd)
        done.append(os.fstat(fd).st_size)
    except OSError:
        pass
print(42 if not done else done)
