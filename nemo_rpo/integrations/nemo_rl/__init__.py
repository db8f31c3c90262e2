"""Robust losses in NVIDIA NeMo-RL's DPO recipe: four pieces that any driver wires, without a fork.

``preference_processor`` and ``preference_collate`` carry annotators through the data path; ``make_loss`` builds the
loss that every worker runs; ``RobustPolicy`` stands in front of the policy and keeps the reliabilities on the driver.
Importing this package needs torch alone; NeMo-RL is imported where it is called. Contract: v0.6.0, v0.7.0 and main of
August 2026; wiring: ``examples/nemo_rl/run_rpo.py``.
"""

from nemo_rpo.integrations.nemo_rl.data import preference_collate, preference_processor
from nemo_rpo.integrations.nemo_rl.loss import RobustLoss, make_loss
from nemo_rpo.integrations.nemo_rl.policy import RobustPolicy

__all__ = ["RobustLoss", "RobustPolicy", "make_loss", "preference_collate", "preference_processor"]
