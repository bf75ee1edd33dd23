"""Images and labels: where they come from, how they are split by seed, and how batches are made of them."""
