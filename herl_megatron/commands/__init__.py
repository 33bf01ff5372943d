"""What `herl X` runs, one module per command."""
