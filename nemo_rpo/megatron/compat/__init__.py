"""Every reach past the public interfaces of Megatron-Core, Transformer Engine and torch.

The rule: a name of theirs that begins with an underscore, a module global of theirs that is overwritten, an object of
theirs whose class or method is replaced, a protocol between their own modules that we take part in, and a function of
theirs that is written out again are used in this package alone. The one exception is
:mod:`nemo_rpo.megatron.cpu.patches`, which is the compat module of CPU runs: what it replaces is replaced for the whole
process, before Megatron-Core is imported, and nothing else may.

A reach is a function under :func:`~nemo_rpo.megatron.compat.places.reaches`, which names the places upstream; its
docstring gives the reason. ``tests/megatron/test_compat.py`` looks for each place in each supported release and fails
with the names of reach and place when one has moved. With a release that is newer than the tested ones,
:func:`~nemo_rpo.megatron.compat.releases.check_megatron_core` looks for them at the start of a run.

Importing these modules imports neither Megatron-Core nor Transformer Engine: functions do, when they are called.
"""
