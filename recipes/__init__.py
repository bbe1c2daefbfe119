"""What to cook, and the cook: recipes, stages, the command line."""
