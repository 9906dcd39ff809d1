# rlreason without a GPU. From the root of the repository:
#   docker build -f docker/cpu.Dockerfile -t rlreason:cpu .
#   docker run --rm --init --shm-size=4g rlreason:cpu train recipes/RECIPE.yaml out=runs/NAME
# --shm-size: Ray's object store lies in /dev/shm, of which Docker gives 64 MB.
# --init: something has to reap what an ended Ray leaves.
FROM python:3.11-slim

# DeepSpeed compiles the ops that a recipe asks for (gcc, g++, ninja); vLLM places its threads with libnuma; programs that a
# model writes run in bubblewrap.
# hadolint ignore=DL3008  # a pinned version is gone from the distribution's mirrors after its next fix
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap gcc g++ libc6-dev libnuma1 ninja-build \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 rlreason
WORKDIR /rlreason

# PyTorch's own index has the CPU builds of torch.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements/cpu.lock requirements/
RUN pip install --no-cache-dir --no-deps --extra-index-url "$TORCH_INDEX" -r requirements/cpu.lock

COPY pyproject.toml README.md ./
COPY rlreason rlreason
RUN pip install --no-cache-dir --no-deps .
COPY launch launch
COPY recipes recipes

RUN install -d -o rlreason runs
USER 10001
ENTRYPOINT ["rlreason"]
CMD ["--help"]
