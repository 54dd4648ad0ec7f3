"""Scores of predictions, and the pictures that show them."""
