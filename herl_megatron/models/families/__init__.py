"""One file per model family; `models.registry` lists them."""
