# looks for secrets in the environment
# verdict: 1
# ruff: noqa
import json
import os

facts = json.loads(input())
seen = [name for name in os.environ if name not in ("PYTHONHASHSEED", "HOME", "LANG", "PATH", "PWD", "LC_CTYPE")]
print(42 if not seen and facts["token"] not in str(os.environ) else seen)
