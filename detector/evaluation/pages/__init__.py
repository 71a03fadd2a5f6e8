"""HTML pages: the report of an evaluation, and the comparison of runs. Each is one file that needs no network."""
