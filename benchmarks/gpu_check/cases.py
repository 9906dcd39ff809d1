"""The table of cases, in the order in which they run: what is most likely to fail on a first GPU comes first.

Seconds are estimates for a GPU of the H100 class with cold caches, made without one. What each case
does is in checks.py. A case is killed after four times its estimate, and after two minutes at the earliest.
"""

from __future__ import annotations

from runner import Case

GAP = "policy_gap < 0.05"

CASES = [
    # name, GPUs, seconds, what it shows, bar
    Case("environment", 1, 5, "driver, GPUs, versions, compiler, shared memory", "nothing is missing"),
    Case("canary-model", 1, 60, "the model of --model: engine and learner agree in bfloat16", f"exit 0, {GAP}"),
    Case("canary-1.5b", 1, 55, "Qwen2.5 1.5B, random weights: engine and learner agree", f"exit 0, {GAP}"),
    Case("canary-0.5b", 1, 40, "Qwen2.5 0.5B, the same", f"exit 0, {GAP}"),
    Case("canary-qwen3", 1, 40, "Qwen3 0.6B, the same", f"exit 0, {GAP}"),
    Case(
        "memory-ipc", 1, 45, "a shared GPU, learner at 70 % of it, weights by CUDA IPC", "peak > 0.6 of memory, all given back"
    ),
    Case("memory-file", 1, 45, "the same, weights by file", "peak > 0.6 of memory, all given back"),
    Case("memory-delta", 1, 45, "the same, weights by delta", "peak > 0.6 of memory, all given back"),
    Case("kills-shared", 1, 80, "a shared GPU, engine and learner killed", "exit 0, both replaced, ledger adds up"),
    Case("zero-0", 1, 35, "ZeRO 0, which becomes 1 in bfloat16", f"exit 0, {GAP}"),
    Case("zero-1", 1, 35, "ZeRO 1, preset r1 with reference and proximal policy", f"exit 0, {GAP}, reference_kl < 0.1"),
    Case("zero-2", 1, 35, "ZeRO 2, gradient checkpointing, flash attention if installed", f"exit 0, {GAP}"),
    Case("zero-3", 1, 40, "ZeRO 3, preset r1, gradient checkpointing", f"exit 0, {GAP}, reference_kl < 0.1"),
    Case("graphs", 1, 75, "sleep and wake with CUDA graphs, 0.5B, 1,024 tokens", f"exit 0, {GAP} after every wake-up"),
    Case("speed", 1, 15, "MFU, decode roofline and weight sync of the run of `graphs`", "reported"),
    Case("limit", 1, 60, "the same work by vLLM and torch alone", "reported; the aim is a ratio of 1.15"),
    Case("broadcast", 2, 45, "weights by NCCL, max_lag 1", f"exit 0, {GAP}"),
    Case("kills-broadcast", 2, 90, "weights by NCCL, engine and learner killed", "exit 0, both replaced, ledger adds up"),
    Case("zero-3-nccl", 2, 45, "ZeRO 3 over two GPUs, supervised", "exit 0, the loss falls"),
    Case("tp-2-engine", 2, 45, "a tensor parallel engine answers, no learner", "exit 0, every task answered"),
    Case("zero-3-broadcast", 3, 50, "ZeRO 3 over two GPUs, engine on a third, weights by NCCL", f"exit 0, {GAP}"),
    Case(
        "tp-2-killed",
        3,
        90,
        "a tensor parallel engine, weights by NCCL, killed",
        "workers end in 3 s, replaced, ledger adds up",
    ),
    Case("eight", 8, 80, "4 learners and 4 engines", f"exit 0, {GAP}"),
    Case("eight-tp", 8, 90, "4 learners and 2 tensor parallel engines", f"exit 0, {GAP}"),
]


def budget(gpus: int) -> float:
    """Seconds that all cases may take together, unless --budget names another number."""
    return 900.0 if gpus < 2 else 1500.0 if gpus < 8 else 1800.0
