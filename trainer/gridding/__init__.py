"""Labelled sheets of pictures that differ along two or three axes."""
