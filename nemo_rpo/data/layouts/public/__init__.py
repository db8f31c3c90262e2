"""Layouts of label tools, platforms and public data sets; :mod:`nemo_rpo.data.layouts.public.table` has them all."""
