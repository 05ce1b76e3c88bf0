"""Published checkpoints: their files, their names and layouts, and how they come into a network."""
