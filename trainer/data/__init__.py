"""From pictures and words to batches."""
