"""From files to batches: readers, proposals, transforms, loader."""
