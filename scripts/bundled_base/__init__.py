"""The workshop that makes the small base model which comes with the package."""
