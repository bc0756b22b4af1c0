"""How fast the parts are, each against a baseline measured in the same run."""
