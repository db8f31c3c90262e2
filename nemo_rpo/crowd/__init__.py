"""Which annotators are careless, which labels are doubtful, what to label again: from votes alone, no policy."""
