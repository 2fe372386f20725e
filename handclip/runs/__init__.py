"""What a run is on disk, and what keeps it safe."""
