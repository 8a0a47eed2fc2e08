"""A run's pairs in the formats of other tools, and models on the Hub."""
