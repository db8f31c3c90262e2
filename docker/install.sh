#!/usr/bin/env bash
# install.sh engine | losses PYTHON…   Installs the package from its source folder into the environments of PYTHON….
#
#   engine   everything that `nemo-rpo train` imports; Megatron-Core and PyTorch have to be there
#   losses   the losses, the EM and the adapters, for a driver or a worker of NeMo-RL: PyTorch has to be there
#
# What an image brings (PyTorch, Megatron-Core, Transformer Engine, …) is built for each other, and nothing here moves
# it: the package comes without its dependencies, and an environment that lacks one fails here, by name.
set -euo pipefail
source=$(dirname "$(dirname "$(realpath "${BASH_SOURCE[0]}")")")
what=$1
shift
(( $# )) || { echo "install.sh: name the interpreters to install for" >&2; exit 2; }

install_into() { # PYTHON ARGUMENT…: uv where there is one, which needs no pip in the environment
  if command -v uv >/dev/null; then
    uv pip install --no-cache --python "$@"
  else
    python3 -m pip --python "$1" install --no-cache-dir --disable-pip-version-check "${@:2}"
  fi
}

for python in "$@"; do
  case $what in
    engine)
      # None of these depends on what the image built, and most are there.
      install_into "$python" 'omegaconf>=2.3' tqdm filelock psutil
      needs='torch, megatron.core, transformers, tokenizers, safetensors, pyarrow, omegaconf, tqdm, filelock, psutil'
      ;;
    losses) needs='torch, numpy' ;;
    *) echo "install.sh: $what is neither engine nor losses" >&2; exit 2 ;;
  esac
  install_into "$python" --no-deps "$source"
  (cd / && "$python" -c "import $needs, nemo_rpo.losses, nemo_rpo.em")
done
