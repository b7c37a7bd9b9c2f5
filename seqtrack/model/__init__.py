"""The SeqTrack model: encoder, decoder, loss, published weights. Knows tensors, not data sets or runs."""
