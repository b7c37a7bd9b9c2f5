"""One module a command, imported when it is chosen: `add_arguments` describes it, `run` returns its exit code."""
