# Two images from the same constraints:
#
#   docker build --target cpu  -t export-circuit .
#   docker build --target cuda -t export-circuit:cuda .
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" export-circuit --task acronym --out model.onnx
#   docker run --rm --gpus all -v "$PWD:/work" export-circuit:cuda doctor
#
# The index that pip knows by default holds torch's CUDA build only. For a small CPU image, name the index
# of torch's CPU builds: --build-arg PIP_EXTRA_INDEX_URL=...

FROM python:3.11-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/home/exporter/.cache/huggingface HOME=/home/exporter
# World-writable home: the user may be replaced by --user, and the hub cache must still work.
RUN useradd --create-home --uid 1000 exporter && chmod 1777 /home/exporter && mkdir /work && chown exporter /work
WORKDIR /src
COPY . .

FROM base AS cpu
ARG PIP_EXTRA_INDEX_URL
RUN pip install -c constraints.txt '.[cpu]' && rm -rf /src
USER exporter
WORKDIR /work
ENTRYPOINT ["export-circuit"]
CMD ["--help"]

# CUDA and cuDNN come as wheels (torch's own and onnxruntime-gpu's extras); the driver is the host's.
FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN pip install -c constraints.txt '.[gpu]' && rm -rf /src
USER exporter
WORKDIR /work
ENTRYPOINT ["export-circuit"]
CMD ["--help"]
