"""Memory and time of the label model on very many annotators.

    python benchmarks/label_model_scale.py [--annotators 100000] [--pairs 1000000]

The crowd of ``em_scale.py`` (one label a pair, log-normal activity, margins N(0, 2²)), the order shown at random, and a
tenth of the votes following it. Printed are the processor seconds of the package's one-coin EM, of the one-coin member,
of the member with slot and confidence, and of the whole of ``fit_label_model`` on flat votes (search on a sample, fit
of all, dependence), unless ``--members`` asks for the members alone.
"""

from __future__ import annotations

import argparse

import torch
from em_scale import draw, timed

from nemo_rpo.em import EMSettings, Votes
from nemo_rpo.em.fit.sweep import full_batch_em
from nemo_rpo.em.label_model import FlatVotes, LabelModelSettings, VoteFeatures, fit_label_model
from nemo_rpo.em.label_model.coded_votes import vote_table
from nemo_rpo.em.label_model.member import PairPrior, expected_population, fit_member, share_start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotators", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--members", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    annotators, pairs, settings = arguments.annotators, arguments.pairs, LabelModelSettings()
    print(f"{pairs:,} pairs, {annotators:,} annotators, {torch.get_num_threads()} threads")
    delta, votes, eta = draw(annotators, pairs, "cpu")
    generator = torch.Generator().manual_seed(1)
    slot = torch.where(torch.rand(pairs, 1, generator=generator) < 0.5, 1.0, -1.0)
    follows = torch.rand(pairs, 1, generator=generator) < 0.1
    votes = Votes(votes.annotator, torch.where(follows, slot, votes.sign.float()))
    features = VoteFeatures(skill={"confidence": torch.randn(pairs, 1, generator=generator)}, leaning={"slot": slot})
    table = timed("flat columns", lambda: vote_table(votes, annotators, features), "cpu")
    coin = EMSettings(link_tau=1.0)
    start_eta = torch.full((annotators,), coin.eta_init, dtype=torch.float64)
    old = timed("one-coin EM", lambda: full_batch_em(delta, votes, start_eta, coin), "cpu")
    print(f"{'':16s} {old.iterations} iterations, converged: {old.converged}", flush=True)
    prior = PairPrior(delta.double(), torch.zeros(pairs, dtype=torch.float64))
    for names in ((), ("confidence", "slot")):
        part = table.select(names)
        population = expected_population(part.names, names, settings)
        start = torch.sigmoid(prior.margin + 0.5 * (share_start(part) - 0.5))
        fit = timed(
            f"{len(part.names)} coefficients",
            lambda args=(part, prior, population, start, settings): fit_member(*args),
            "cpu",
        )
        error = (fit.eta - (0.9 * eta + 0.05)).square().mean().sqrt().item()
        print(f"{'':16s} {fit.iterations} iterations, converged: {fit.converged}, RMSE of η {error:.3f}", flush=True)
        del fit
    if arguments.members:
        return
    flat = FlatVotes.of(votes)
    flat_features = VoteFeatures(
        {name: values[:, 0] for name, values in features.skill.items()},
        {name: values[:, 0] for name, values in features.leaning.items()},
    )
    table = part = votes = features = None  # ten million votes are not held twice
    whole = timed("all of it", lambda: fit_label_model(flat, annotators, flat_features, margin=delta), "cpu")
    print(f"{'':16s} {'; '.join(whole.reasons())}")


if __name__ == "__main__":
    main()
