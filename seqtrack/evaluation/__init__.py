"""LaSOT's protocol and what it is applied to: checkpoints, baselines, and other trackers' result files."""
