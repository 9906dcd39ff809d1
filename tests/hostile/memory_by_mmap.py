# takes four gigabytes by mmap, shared and private
# verdict: 1
# ruff: noqa
import mmap

got = []
for flags in (mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS):
    try:
        got.append(mmap.mmap(-1, 4 << 30, flags=flags))
    except (OSError, ValueError):
        pass
print(42 if not got else got)
