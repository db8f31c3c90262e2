# NVIDIA's NeMo image brings PyTorch, Megatron-Core, Transformer Engine, apex and NCCL, built for each other; nothing here
# may move their versions. 26.02 holds Megatron-Core 0.16 and Transformer Engine 2.12; 26.06 (0.18, 2.16) works as well.
#
#   docker build -t nemo-rpo .
#   docker run --rm --gpus all --ipc=host --ulimit memlock=-1 -v "$PWD:/workspace/run" -w /workspace/run nemo-rpo \
#     nemo-rpo train --config-name gpt_rpo --config-path /opt/nemo_rpo/conf --nproc-per-node 8 …
ARG BASE=nvcr.io/nvidia/nemo:26.02
FROM ${BASE}

COPY pyproject.toml README.md LICENSE /opt/nemo_rpo/
COPY nemo_rpo /opt/nemo_rpo/nemo_rpo
COPY conf /opt/nemo_rpo/conf
COPY examples /opt/nemo_rpo/examples

# The first line asks for what depends on none of the image's own packages and is most often there already; the package
# itself comes without its dependencies. An image that lacks one of them fails here, by name, and not in a training job.
# uv is how this image is built; `--python` names its environment, which `uv pip` would not find by itself.
RUN uv pip install --no-cache --python "$(command -v python)" 'omegaconf>=2.3' tqdm filelock psutil \
 && uv pip install --no-cache --python "$(command -v python)" --no-deps /opt/nemo_rpo \
 && python -c 'import megatron.core, transformers, tokenizers, safetensors, pyarrow, omegaconf, tqdm, filelock, psutil' \
 && nemo-rpo --version

# The id is above those that Ubuntu images give to a user of their own.
RUN useradd --create-home --uid 10001 rpo
USER rpo
WORKDIR /home/rpo

# Says that the installation is whole; a training job's own health is in its metrics.jsonl.
HEALTHCHECK --interval=60s --timeout=30s --start-period=30s CMD ["nemo-rpo", "--version"]
CMD ["nemo-rpo", "--help"]
