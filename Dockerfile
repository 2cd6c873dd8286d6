# The environment of the lock and the workflow. Results stay outside the image:
#   docker build -t distillation-energy-benchmark .
#   docker run --rm -v "$PWD/results:/app/results" distillation-energy-benchmark
# A container sees the host's RAPL counters only with `-v /sys/class/powercap:/sys/class/powercap:ro`, its GPUs only with `--gpus all`
# (and a torch for CUDA in the lock's place); without counters energy is modelled, as on any host.
FROM python:3.11-slim-bookworm

# make and a C compiler: make demo, and extensions that torch builds; git: the commit in every record
# no pinned versions: Debian removes one when the next one comes
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc git libc6-dev make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY envs/requirements.txt envs/requirements.txt
COPY Makefile Makefile
RUN make environment

COPY . .
RUN touch .venv/.made-from-lock # newer than the lock that was copied again
VOLUME /app/results
CMD ["make", "demo"]
