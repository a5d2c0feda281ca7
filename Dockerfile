# Training, building and evaluating on NVIDIA GPUs.
#
#   docker build -t open_clip_triplet .
#   docker run --gpus all --ipc host -v "$PWD/data:/data" open_clip_triplet triplet-train --loss triplet ...
#
# vLLM pins its own torch, so captions with vLLM want an image of their own:
#   docker build --build-arg EXTRAS=build,vllm -t open_clip_triplet:vllm .
FROM python:3.12-slim
ARG EXTRAS=build,ray,eval,inspect
RUN apt-get update \
    && apt-get install -y --no-install-recommends wordnet-base wordnet-sense-index patch \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/open_clip_triplet
COPY . .
# PyPI's torch brings its CUDA libraries; the driver comes from the host
RUN pip install --no-cache-dir ".[${EXTRAS}]"
RUN useradd --create-home user
USER user
WORKDIR /home/user
CMD ["triplet-train", "--help"]
