# asks a name server, by libc and by hand
# verdict: 1
# ruff: noqa
import socket

asked = []
for ask in (
    lambda: socket.gethostbyname("example.com"),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(bytes(30), ("8.8.8.8", 53)),
):
    try:
        asked.append(ask())
    except OSError:
        pass
print(42 if not asked else asked)
