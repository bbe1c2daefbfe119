"""What the stage `release` is made of: the release folder, its checksums and model card, and the push to the Hub."""
