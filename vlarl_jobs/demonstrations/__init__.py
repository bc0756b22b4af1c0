"""Demonstrations: played by the experts, kept in LIBERO's layout, made into datasets."""
