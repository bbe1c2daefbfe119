"""The student as a folder for others: the files they load, a model card, checksums, and its way to the Hub."""
