"""What `sottovoce plan` is made of: the search space, measured shapes, cost models, and the choice among students."""
