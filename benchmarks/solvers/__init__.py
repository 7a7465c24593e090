"""Error against evaluations, for every solver of drift."""
