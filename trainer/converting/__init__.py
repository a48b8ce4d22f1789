"""Models on disk made out of other models on disk: what needs families and files both."""
