# recurses until the stack overflows
# verdict: 0
# ruff: noqa
import sys

sys.setrecursionlimit(10**9)


class Deep:
    def __getattr__(self, name):
        return getattr(self, name + "x")


def down(n):
    return max([n], key=lambda _: down(n + 1))


down(0)
print(42)
