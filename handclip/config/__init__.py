"""The experiment file: typed, validated, and named."""
