"""Datasets, and samples of them."""
