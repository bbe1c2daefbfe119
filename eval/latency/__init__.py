"""Speed, memory and size: measuring processes, what they print, and the verdict on a budget."""
