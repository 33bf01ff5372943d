"""From rows of different lengths to balanced micro-batches."""
