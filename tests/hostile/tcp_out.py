# connects to a server on this machine and to one outside
# verdict: 1
# ruff: noqa
import json
import socket

facts = json.loads(input())
reached = []
for address in (("127.0.0.1", facts["port"]), ("::1", facts["port"]), ("1.1.1.1", 80)):
    try:
        socket.create_connection(address, timeout=0.3).close()
        reached.append(address)
    except OSError:
        pass
print(42 if not reached else reached)
