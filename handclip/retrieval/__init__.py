"""From images to rankings and their means; it writes no files."""
