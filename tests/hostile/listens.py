# binds a port and listens
# verdict: 1
# ruff: noqa
import socket

try:
    socket.create_server(("0.0.0.0", 0))
    print("listening")
except OSError:
    print(42)
