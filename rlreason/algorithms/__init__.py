"""The methods: pure functions, chosen by name. Add one by writing one; a recipe may also name my_package.my_loss.

Nothing here loads torch: losses call only methods of the tensors they get, so that a recipe can be checked without it.
"""

from rlreason.algorithms.covariance import COVARIANCE
from rlreason.algorithms.credit import ADVANTAGES, Scores
from rlreason.algorithms.filters import FILTERS
from rlreason.algorithms.kl import KL
from rlreason.algorithms.losses import AVERAGES, LOSSES
from rlreason.algorithms.mismatch import CORRECTIONS
from rlreason.algorithms.objective import objective
from rlreason.algorithms.presets import PRESETS

__all__ = [
    "ADVANTAGES",
    "AVERAGES",
    "CORRECTIONS",
    "COVARIANCE",
    "FILTERS",
    "KL",
    "LOSSES",
    "PRESETS",
    "Scores",
    "objective",
]
