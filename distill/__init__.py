"""From teacher to student: cut, train, compress, export and release."""
