"""Training: the state, one step, the loop over steps, saving next to it, the log, and the processes of one run."""
