# The program in a container that trains and evaluates the demo:
#   docker build -t fast-rcnn .                            for CPUs
#   docker build -t fast-rcnn --build-arg DEVICE=cuda .    for NVIDIA GPUs: run it with --gpus all
#   docker run --rm -v fast-rcnn-runs:/fast-rcnn/runs fast-rcnn
# Any other command instead, on data of your own (workers exchange images through shared memory):
#   docker run --rm --shm-size 2g -v /data/mine:/data:ro -v fast-rcnn-runs:/fast-rcnn/runs fast-rcnn \
#       .venv/bin/python train.py data=folder data.root=/data
FROM debian:bookworm-slim

ARG DEVICE=cpu
# On a GPU, Triton compiles a part of each kernel's start with gcc.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates make python3 python3-venv \
    && if [ "$DEVICE" = cuda ]; then apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev; fi \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 user && install --directory --owner user /fast-rcnn /fast-rcnn/runs
USER user
WORKDIR /fast-rcnn
COPY --chown=user . .

# requirements.txt pins torch for CUDA, with CUDA's libraries, which are several times the rest.
RUN if [ "$DEVICE" = cpu ]; then \
        sed -i -E '/^(cuda-|nvidia-|triton==)/d' requirements.txt; export UV_TORCH_BACKEND=cpu; \
    fi \
    && make setup

CMD ["make", "demo"]
