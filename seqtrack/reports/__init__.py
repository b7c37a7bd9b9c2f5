"""What is made of finished runs: comparison and verdict, plots, the report, the model card. Reads files only."""
