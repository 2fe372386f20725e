"""Training, feature extraction and evaluation."""
