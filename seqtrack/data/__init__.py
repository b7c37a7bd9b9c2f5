"""Data sets and the samples drawn from them. Knows nothing of the model: they meet in a batch of bytes and boxes."""
