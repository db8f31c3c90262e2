"""Responses of a policy: from a server, or from whatever else keeps :class:`nemo_rpo.sampling.asks.Sampler`."""
