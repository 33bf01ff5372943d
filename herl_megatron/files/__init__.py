"""Files that a run reads and writes: names, strict JSON, manifests, what the disk's errors mean."""
