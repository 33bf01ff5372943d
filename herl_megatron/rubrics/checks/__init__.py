"""Rule checks, by name."""
