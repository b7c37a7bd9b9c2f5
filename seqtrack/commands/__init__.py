"""One module per command, imported to run it: `run` returns its exit code. `parsers` describes all arguments."""
