"""Robust preference optimization (RE-PO): preference losses that model their annotators, and what annotators are worth.

Which annotators are careless, from a table of votes (pandas, polars, Arrow, dicts, or a file)::

    import nemo_rpo
    result = nemo_rpo.estimate_reliability(table, pair="pair", annotator="annotator", vote="vote")
    print(result)             # or in a notebook: result; result.to_pandas("labels")

The same in crowd-kit's manner (columns task, worker, label)::

    model = nemo_rpo.RobustLabels().fit(frame)
    model.labels_, model.probas_, model.skills_

For a training loop of one's own, with log-probs of P pairs, and of each pair V votes::

    from nemo_rpo.losses import PairLogprobs
    votes = nemo_rpo.Votes(annotator, sign)                          # [P, V]; one label a pair: Votes.single(annotator)
    terms = nemo_rpo.build_loss("dpo", beta=0.1).terms(PairLogprobs(...))   # both directions, and the margin Δ
    w = nemo_rpo.posterior(terms.delta, votes, eta.logit())          # P(chosen is better | Δ, votes) [P]
    nemo_rpo.robust_loss(terms, w).mean().backward()
    eta = nemo_rpo.estimate(margins, votes, eta, nemo_rpo.EMSettings()).eta    # now and then, over all pairs

TRL's trainer with all of it built in is ``nemo_rpo.integrations.trl.RPOTrainer``; ``nemo-rpo --help`` lists commands.

Importing this package imports nothing heavy: names below are imported when they are first used.
"""

from typing import TYPE_CHECKING

from nemo_rpo.lazy import lazy_exports

if TYPE_CHECKING:
    from nemo_rpo.crowd.estimate import estimate_reliability as estimate_reliability
    from nemo_rpo.crowd.reliability import Reliability as Reliability
    from nemo_rpo.crowd.robust_labels import RobustLabels as RobustLabels
    from nemo_rpo.em.e_step import posterior as posterior
    from nemo_rpo.em.em_settings import EMSettings as EMSettings
    from nemo_rpo.em.fit.full_fit import estimate as estimate
    from nemo_rpo.em.objective import robust_loss as robust_loss
    from nemo_rpo.em.votes import Votes as Votes
    from nemo_rpo.errors import RPOError as RPOError
    from nemo_rpo.losses.registry import build_loss as build_loss

__version__ = "0.1.0"
_names, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "crowd.estimate": ("estimate_reliability",),
        "crowd.reliability": ("Reliability",),
        "crowd.robust_labels": ("RobustLabels",),
        "em.e_step": ("posterior",),
        "em.em_settings": ("EMSettings",),
        "em.fit.full_fit": ("estimate",),
        "em.objective": ("robust_loss",),
        "em.votes": ("Votes",),
        "errors": ("RPOError",),
        "losses.registry": ("build_loss",),
    },
)
__all__ = [*_names, "__version__"]
