"""What Python imports at its start where this folder comes first on PYTHONPATH: see `dies`."""

import dies

dies.arm()
