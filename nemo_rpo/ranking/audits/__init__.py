"""What a ranking owes to those who judged: unanimous pairs, majorities, cycles, and a linear rule that keeps them."""
