# %% [markdown]
# # Whom to believe, in five minutes
#
# Twelve people say which of two answers is better. Nobody knows who is careful. `nemo_rpo` tells, from the votes
# alone, and trains a model on what can be believed. Everything here runs on a CPU in seconds.

# %%
import numpy as np
import pandas as pd
import torch

import nemo_rpo
from nemo_rpo.losses import PairLogprobs

# %% [markdown]
# ## A crowd whose care is known
#
# 400 pairs, three votes each. Nine annotators are right 80 to 95 % of the time; three are little better than a coin.
# One row a vote, as any spreadsheet has it.

# %%
rng = np.random.default_rng(0)
care = np.array([0.95, 0.92, 0.9, 0.9, 0.88, 0.86, 0.85, 0.82, 0.8, 0.55, 0.52, 0.5])
features = rng.normal(size=(400, 8))  # of the first answer less those of the second
truth = features @ rng.normal(size=8) > 0  # is the first answer better?
rows = [
    {"pair": i, "annotator": f"annotator {k + 1:02}", "vote": "a" if truth[i] == (rng.random() < care[k]) else "b"}
    for i in range(400)
    for k in rng.choice(12, 3, replace=False)
]
table = pd.DataFrame(rows)
table.head()

# %% [markdown]
# ## Which annotators are careless?

# %%
result = nemo_rpo.estimate_reliability(table)
result

# %% [markdown]
# `retrain` means that the whole 95 % interval of the reliability lies below what is asked (.70), `trust` that all of it
# lies above. Every label has a probability of being right, too:

# %%
labels = result.to_pandas("labels")
labels.sort_values("right").head()

# %%
majority = table.assign(a=table.vote == "a").groupby("pair").a.mean() > 0.5
pairs = result.to_pandas("pairs")
believed = pairs.first_better.to_numpy() > 0.5
print(f"majority right {np.mean(majority.to_numpy() == truth):.3f}, label model right {np.mean(believed == truth):.3f}")

# %% [markdown]
# ## The same in crowd-kit's manner

# %%
model = nemo_rpo.RobustLabels().fit(table.rename(columns={"pair": "task", "annotator": "worker", "vote": "label"}))
model.skills_.sort_values().round(3)

# %% [markdown]
# ## A training loop of one's own
#
# Let a linear score stand for a language model: log-probs of both answers differ by `features @ weights`. With the
# robust loss each label counts for as much as it can be believed, given the model *and* the annotators.

# %%
votes = nemo_rpo.Votes.single(torch.tensor([int(row["annotator"][-2:]) - 1 for row in rows]))
sign = torch.tensor([1.0 if row["vote"] == "a" else -1.0 for row in rows])
x = torch.tensor(features[[row["pair"] for row in rows]], dtype=torch.float32) * sign[:, None]  # preferred less other
loss = nemo_rpo.build_loss("dpo", beta=1.0)


def terms(weights):
    """Both directions of the loss; the reference policy is 0 everywhere."""
    margin, zero = x @ weights, torch.zeros(len(x))
    return loss.terms(PairLogprobs(margin, zero, zero, zero))


def train(robust: bool):
    """The weights, and the reliabilities of the annotators."""
    weights, eta = torch.zeros(8, requires_grad=True), torch.full((12,), 0.9, dtype=torch.float64)
    optimizer = torch.optim.Adam([weights], lr=0.05)
    for step in range(300):
        now = terms(weights)
        w = nemo_rpo.posterior(now.delta, votes, eta.logit()) if robust else torch.ones(len(x))
        optimizer.zero_grad()
        nemo_rpo.robust_loss(now, w).mean().backward()
        optimizer.step()
        if robust and step % 50 == 49:
            eta = nemo_rpo.estimate(terms(weights).delta.detach(), votes, eta, nemo_rpo.EMSettings()).eta
    return weights.detach(), eta


for name in ("plain", "robust"):
    weights, eta = train(name == "robust")
    print(f"{name}: right on {np.mean((features @ weights.numpy() > 0) == truth):.3f} of the pairs")
print("reliabilities:", eta.numpy().round(2))

# %% [markdown]
# Next: `nemo-rpo annotators FILE` does the first half for a file of any layout, `nemo-rpo train` the second half for a
# language model.
