"""What is minimised: pure tensor mathematics."""
