"""One step: a micro-batch forward, the schedule, its metrics and collectives, the EM of the run."""
