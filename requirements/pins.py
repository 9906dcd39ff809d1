"""What `pip install --dry-run --report` resolved, as gpu.lock and gpu.requires. Usage: pins.py REPORT FOLDER

gpu.requires holds what each pinned package asks for on this platform, so that an edited lock can be checked offline.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OWN = "rlreason"


def main(report: Path, folder: Path) -> None:
    found = json.loads(report.read_text())
    python = ".".join(found["environment"]["python_full_version"].split(".")[:2])
    names, requires = {}, {}
    for item in found["install"]:
        about = item["metadata"]
        name = canonicalize_name(about["name"])
        if name == OWN:
            continue
        names[name] = f"{about['name']}=={about['version']}"
        requires[f"{name}=={about['version']}"] = wanted(about.get("requires_dist", []), item.get("requested_extras", []))
    if "+cpu" in names["torch"]:
        sys.exit(f"{names['torch']} is a CPU build: use an index that has the CUDA build")
    header = f"# Every package of a GPU installation (CUDA 13, Python {python}), by requirements/lock.sh; not yet run on a GPU."
    (folder / "gpu.lock").write_text("\n".join([header, *sorted(names.values(), key=str.lower)]) + "\n")
    lines = [f"  {json.dumps(pin)}: {json.dumps(requires[pin])}" for pin in sorted(requires)]
    (folder / "gpu.requires").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def wanted(requires: list[str], extras: list[str]) -> list[str]:
    """Requirements whose markers hold here, without them."""
    kept = set()
    for requirement in map(Requirement, requires):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ["", *extras]):
            requirement.marker = None
            requirement.extras, requirement.url = set(), None
            kept.add(f"{canonicalize_name(requirement.name)}{requirement.specifier}")
    return sorted(kept)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
