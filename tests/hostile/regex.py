# is in C for ages: a regular expression that backtracks
# verdict: 0
# ruff: noqa
import re

re.match(r"(a*)*b", "a" * 40)
re.match(r"(a|aa)+$", "a" * 60 + "b")
print(42)
