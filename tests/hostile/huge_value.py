# builds an enormous number and prints it
# verdict: 0
# ruff: noqa
import sys

sys.set_int_max_str_digits(0)
print(str(7**30_000_000))
