"""Hugging Face folders in and out: Llama, Mistral, Qwen2 and Qwen3, Mixtral, Qwen2-MoE, Qwen3-MoE and GLM4-MoE, under
every tensor, pipeline and expert layout.

* ``config``: ``config.json`` ↔ :class:`~nemo_rpo.config.architecture.GPTArchitecture` (needs torch alone);
* ``expert_config``, ``expert_mapping``: the same, and the next, of experts;
* ``tensors``, ``mapping``: which rows of which Hugging Face tensor make up each Megatron tensor, written once for both
  directions;
* ``sharding``: the slices of those Megatron tensors that this rank holds;
* ``weights``, ``importer``: safetensors → parameters, each rank reading only its own slices;
* ``writer``, ``exporter``: parameters → safetensors, one Megatron tensor at a time.
"""
