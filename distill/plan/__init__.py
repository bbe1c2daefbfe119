"""Students designed from the device inwards: shapes measured with random weights, and the largest that fit a budget."""
