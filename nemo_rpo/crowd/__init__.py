"""Which annotators are careless, which labels are doubtful, what to have labelled again: from votes alone, no policy."""
