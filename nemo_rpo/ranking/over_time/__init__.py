"""Strengths that change with time: who has got better, who worse, and whether anybody has at all."""
