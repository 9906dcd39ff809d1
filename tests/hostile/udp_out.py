# sends a datagram
# verdict: 1
# ruff: noqa
import json
import socket

facts = json.loads(input())
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"secret", ("127.0.0.1", facts["port"]))
    print("sent")
except OSError:
    print(42)
