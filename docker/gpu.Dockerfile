# rlreason on NVIDIA GPUs (CUDA 13). From the root of the repository:
#   docker build -f docker/gpu.Dockerfile -t rlreason:gpu .
#   docker run --rm --init --gpus all --shm-size=32g -v "$PWD/runs:/rlreason/runs" \
#     rlreason:gpu train recipes/RECIPE.yaml out=runs/NAME
# Is this machine fit for it? The first thing to run:
#   docker run --rm --init --gpus all --shm-size=32g -v "$PWD/runs:/rlreason/runs" \
#     --entrypoint python rlreason:gpu benchmarks/gpu_check
# --shm-size: Ray's object store and NCCL share /dev/shm, of which Docker gives 64 MB.
# --init: something has to reap what an ended Ray leaves.
# Devel, not runtime: DeepSpeed and vLLM compile kernels at first use, with nvcc.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04

# ibverbs: NCCL loads it for InfiniBand and RoCE; without it several nodes talk TCP. Programs that a model writes run in
# bubblewrap.
# hadolint ignore=DL3008  # a pinned version is gone from the distribution's mirrors after its next fix
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3.12 python3.12-dev python3.12-venv \
      bubblewrap gcc g++ ninja-build libnuma1 libibverbs1 ibverbs-providers \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 rlreason
WORKDIR /rlreason

# Ubuntu keeps pip away from its own Python.
ENV VIRTUAL_ENV=/usr/local/rlreason
ENV PATH=$VIRTUAL_ENV/bin:$PATH
RUN python3.12 -m venv "$VIRTUAL_ENV"

COPY requirements/gpu.lock requirements/
RUN pip install --no-cache-dir --no-deps -r requirements/gpu.lock

COPY pyproject.toml README.md ./
COPY rlreason rlreason
RUN pip install --no-cache-dir --no-deps .
COPY launch launch
COPY recipes recipes
COPY benchmarks benchmarks

RUN install -d -o rlreason runs
USER 10001
ENTRYPOINT ["rlreason"]
CMD ["--help"]
