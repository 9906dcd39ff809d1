# unpacks a few kilobytes into ten gigabytes
# verdict: 0
# ruff: noqa
import zlib

packer = zlib.compressobj()
block = bytes(1 << 20)
packed = b"".join(packer.compress(block) for _ in range(300)) + packer.flush()
grown = [zlib.decompress(packed) for _ in range(40)]
print(42)
