# is in C for ages, holding the interpreter's lock: a power
# verdict: 0
# ruff: noqa
print(42 + pow(3, 3**19) % 1)
