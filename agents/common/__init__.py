"""What surrounds learning, whatever the algorithm."""
