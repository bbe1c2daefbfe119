"""Schema of a recipe, one file per section, and of the device budgets that a recipe refers to."""
