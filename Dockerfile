# Two targets, for the two images that NVIDIA's users start from:
#
#   docker build -t nemo-rpo .                              this package's trainer, Megatron-Bridge
#   docker build -t nemo-rpo-nemo-rl --target nemo-rl .     NeMo-RL
#
#   docker run --rm --gpus all --ipc=host --ulimit memlock=-1 -v "$PWD:/workspace/run" -w /workspace/run nemo-rpo \
#     nemo-rpo train --config-name llama3_8b_ultrafeedback …
#
# Nothing here may move what the bases bring. nemo:26.02 holds Megatron-Core 0.16 and Transformer Engine 2.12; 26.06 (0.18,
# 2.16, Bridge 0.5) works as well. The steps are docker/install.sh, which the tests run; the images have not been built.
ARG NEMO_BASE=nvcr.io/nvidia/nemo:26.02
ARG NEMO_RL_BASE=nvcr.io/nvidia/nemo-rl:v0.7.0

FROM scratch AS source
COPY pyproject.toml README.md LICENSE /
COPY nemo_rpo /nemo_rpo
COPY conf /conf
COPY examples /examples
COPY docker /docker


FROM ${NEMO_RL_BASE} AS nemo-rl
USER 0
COPY --from=source / /opt/nemo_rpo
COPY examples/nemo_rl/rpo.yaml /opt/nemo-rl/examples/configs/rpo.yaml

# The loss is pickled to the workers by name, and each kind of them has an environment of its own. NRL_FORCE_REBUILD_VENVS
# would make these anew, without the package. They are links into /root, where others than root may not look.
RUN /opt/nemo_rpo/docker/install.sh losses /opt/nemo_rl_venv/bin/python /opt/ray_venvs/*/bin/python \
 && chmod o+rx /root \
 && useradd --create-home --uid 10001 rpo
USER 10001
HEALTHCHECK --interval=10m --timeout=2m --start-period=1m \
  CMD ["/opt/nemo_rl_venv/bin/python", "-m", "nemo_rpo.healthcheck", "losses"]


FROM ${NEMO_BASE} AS nemo
USER 0
COPY --from=source / /opt/nemo_rpo

# The id is above those that Ubuntu images give to a user of their own.
RUN /opt/nemo_rpo/docker/install.sh engine "$(command -v python)" \
 && useradd --create-home --uid 10001 rpo
USER 10001
WORKDIR /home/rpo
HEALTHCHECK --interval=10m --timeout=2m --start-period=1m CMD ["python", "-m", "nemo_rpo.healthcheck", "engine"]
CMD ["nemo-rpo", "--help"]
