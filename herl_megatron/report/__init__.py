"""What finished and running runs came to: curves, one HTML page, sample rollouts."""
