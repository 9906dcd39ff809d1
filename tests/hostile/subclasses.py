# climbs to the interpreter's insides by __subclasses__, and runs a shell
# verdict: 1
# ruff: noqa
found = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == "_wrap_close"]
status = [c.__init__.__globals__["system"]("echo escaped >&1") for c in found]
print(42 if all(status) else status)
