"""Teacher to student: cut, train, export."""
