"""What a run has of the rounds before it: whom to believe, and how far the policy has gone since the first."""
