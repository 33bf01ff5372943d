"""One file per model family; `models.known_families` lists them."""
