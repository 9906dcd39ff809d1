# never ends
# verdict: 0
# ruff: noqa
while True:
    pass
