"""Contracts: what rlreason calls, overrides and reads in vLLM, DeepSpeed, Ray and torch, checked against their sources.

sources   definitions of a library, found by AST: nothing is imported, so a CUDA wheel can be read on any machine
table     the contracts, one line each
check     the table against sources, and rlreason's own code against the table
lock      requirements/gpu.lock against pyproject.toml and against the metadata of what is locked
wheels    sources and metadata of published wheels, kept in a cache
device    the learner's tensor code on fake tensors of an accelerator
"""
