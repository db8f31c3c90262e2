"""Hugging Face folders in and out: Llama, Mistral, Qwen2 and Qwen3 (dense), under every tensor and pipeline layout.

* ``config``: ``config.json`` ↔ :class:`~nemo_rpo.config.architecture.GPTArchitecture` (needs torch alone);
* ``mapping``: which rows of which Hugging Face tensor make up each Megatron tensor, written once for both directions;
* ``sharding``: the slices of those Megatron tensors that this rank holds;
* ``weights``, ``importer``: safetensors → parameters, each rank reading only its own slices;
* ``writer``, ``exporter``: parameters → safetensors, one Megatron tensor at a time.
"""
