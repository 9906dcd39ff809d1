# connects to sockets of the machine: abstract, by path, and by a pair made of datagrams
# verdict: 1
# ruff: noqa
import json
import socket

facts = json.loads(input())
addresses = ["\0" + facts["abstract"], facts["outside"] + "/socket", "/run/docker.sock", "/var/run/docker.sock", "/dev/log"]
reached = []
for address in addresses:
    for make in (
        lambda: socket.socket(socket.AF_UNIX),
        lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0],
        lambda: socket.socketpair()[0],
    ):
        try:
            make().connect(address)
            reached.append(address)
        except OSError:
            pass
print(42 if not reached else reached)
