# opens raw, packet, netlink, vsock and Bluetooth sockets
# verdict: 1
# ruff: noqa
import socket

got = []
for family, kind in ((2, 3), (10, 3), (17, 3), (16, 3), (16, 2), (40, 1), (31, 3), (38, 5), (29, 3)):
    try:
        got.append(socket.socket(family, kind))
    except OSError:
        pass
print(42 if not got else got)
