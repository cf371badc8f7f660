"""The commands of ``unroll``: a file for each."""
