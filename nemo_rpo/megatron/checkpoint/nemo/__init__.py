"""``.nemo`` checkpoints of NeMo's GPT (1.x up to 2.1, as NeMo-Aligner writes them) in and out, without NeMo.

* ``archive``: the files of a ``.nemo``, packed or not, read where they are;
* ``config``: ``model_config.yaml`` ↔ :class:`~nemo_rpo.config.architecture.GPTArchitecture`;
* ``mapping``: NeMo's tensors, which are Megatron's under another name;
* ``weights``: any block of any tensor from the three forms in which NeMo has stored them (``torch_dist``, ``zarr``,
  ``per_rank``), with no pickle read that could run code;
* ``importer``, ``exporter``, ``writer``: to and from this rank's model chunks.
"""
