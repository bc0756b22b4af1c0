"""The report's pictures, a module for each of its sections."""
