"""Judging a run while and after it trains."""
