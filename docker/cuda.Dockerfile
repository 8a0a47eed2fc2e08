# mixpo on NVIDIA GPUs, with vLLM, FlashAttention and DeepSpeed. Needs the NVIDIA container toolkit:
#   docker build -f docker/cuda.Dockerfile -t mixpo:cuda . && docker run --rm --gpus all --ipc=host -v "$PWD:/data" mixpo:cuda doctor
# vLLM pins its own torch, so it lives in an environment of its own; recipes start it with `start = ["/opt/vllm/bin/vllm", "serve", ...]`.
FROM nvidia/cuda:13.0.1-cudnn-devel-ubuntu24.04

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 DEBIAN_FRONTEND=noninteractive
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-dev python3-venv git \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/vllm && /opt/vllm/bin/pip install vllm==0.32.0
WORKDIR /opt/mixpo
COPY constraints.txt ./
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install -c constraints.txt torch torchvision ninja packaging wheel \
    && MAX_JOBS=4 /opt/venv/bin/pip install --no-build-isolation flash-attn==2.8.3
COPY . .
RUN /opt/venv/bin/pip install -c constraints.txt '.[all,liger,deepspeed]' \
    && useradd --create-home --uid 10001 mixpo && mkdir /data && chown mixpo /data

ENV PATH=/opt/venv/bin:$PATH
USER 10001
WORKDIR /data
ENTRYPOINT ["mixpo"]
CMD ["--help"]
