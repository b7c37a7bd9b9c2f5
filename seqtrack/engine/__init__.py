"""Training: the state, one step, the loop over steps, saving beside it, the log, and the processes of one run."""
