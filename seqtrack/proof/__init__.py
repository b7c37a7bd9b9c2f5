"""Proof by re-execution: parts of a run are trained again and compared with what the run recorded."""
