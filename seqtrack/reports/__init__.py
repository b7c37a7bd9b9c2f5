"""What is made from the files of finished runs: comparison and verdict, plots, the report, the model card."""
