"""Presets: what `algorithm.preset: name` stands for. A recipe's own options win over it.

A preset is the method of a paper, and not its scale: steps, samples, learning rate and lengths are the recipe's.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Preset(NamedTuple):
    paper: str
    settings: dict[str, dict[str, Any]]  # as a recipe would say it


def _preset(paper: str, tasks: dict[str, Any] | None = None, **algorithm: Any) -> Preset:
    return Preset(paper, {"algorithm": algorithm} | ({"tasks": tasks} if tasks else {}))


PRESETS: dict[str, Preset] = {
    "r1": _preset(
        "DeepSeek-R1 (2501.12948; Nature s41586-025-09422-z, Methods): GRPO with a wide clip and a KL to a reference "
        "that is refreshed every 400 steps",
        advantage="grpo", loss="clip", loss_options={"low": 10.0, "high": 10.0}, per="sequence",
        kl="k3", kl_loss=0.001, reference_every=400,
    ),
    "dapo": _preset(
        "DAPO (2503.14476): clip-higher, dynamic sampling, mean over tokens, soft overlong penalty, no KL",
        advantage="grpo", loss="clip", loss_options={"low": 0.2, "high": 0.28}, per="token", keep="differ", overlong="soft",
    ),
    "dr_grpo": _preset(
        "Dr.GRPO (2503.20783): neither the group's std nor the answer's length divides",
        advantage="dr_grpo", loss="clip", loss_options={"low": 0.2, "high": 0.2}, per="constant",
    ),
    "gspo": _preset(
        "GSPO (2507.18071): one importance ratio per sequence",
        advantage="grpo", loss="gspo", loss_options={"low": 3e-4, "high": 4e-4}, per="sequence",
    ),
    "cispo": _preset(
        "MiniMax-M1 (2506.13585): clip the importance weight, keep every token's gradient; no KL",
        advantage="grpo", loss="cispo", loss_options={"low": 1.0, "high": 4.0}, per="token", keep="differ",
    ),
    "scale_rl": _preset(
        "ScaleRL (2510.13786): CISPO, mean over prompts, advantages scaled over the batch, flat groups dropped without "
        "replacement, solved prompts never asked again",
        advantage="batch", advantage_options={"std": "advantages"}, loss="cispo", loss_options={"low": 1.0, "high": 4.0},
        per="prompt", keep="differ", refill=False, tasks={"solved": 0.9},
    ),
    "reinforce_pp": _preset(
        "REINFORCE++ (2501.03262): no baseline but the batch's, KL in the reward",
        advantage="reinforce_pp", loss="clip", loss_options={"low": 0.2, "high": 0.2}, per="token", kl_reward=0.001,
    ),
    "reinforce_pp_baseline": _preset(
        "REINFORCE++-baseline (2501.03262): the group's mean as baseline, whitened over the batch, k2 in the loss",
        advantage="reinforce_pp_baseline", loss="clip", loss_options={"low": 0.2, "high": 0.2}, per="token",
        kl="k2", kl_loss=0.001,
    ),
    "rloo": _preset(
        "RLOO (2402.14740): leave-one-out baseline, KL in the reward",
        advantage="rloo", loss="clip", loss_options={"low": 0.2, "high": 0.2}, per="sequence", kl_reward=0.03,
    ),
    "distill": _preset(
        "On-policy distillation (2306.13649; Thinking Machines, 2025): the reverse KL to a teacher, token by token; "
        "name the teacher in algorithm.reference",
        advantage="none", loss="clip", loss_options={"low": 0.2, "high": 0.2}, per="token", kl_credit=1.0,
    ),
}  # fmt: skip
