"""External object proposals: file formats, generation, checks and conversion."""
