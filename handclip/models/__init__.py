"""Image encoders, and the embedding models built on them."""
