"""What became of a run, as one page that a person reads, and as what is published of it."""
