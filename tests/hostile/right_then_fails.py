# prints the right answer, then ends with an error
# verdict: 0
# ruff: noqa
print(42)
raise SystemExit(3)
