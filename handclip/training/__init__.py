"""The training loop and what a step is; it writes no files and knows no signals."""
