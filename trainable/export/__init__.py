"""A trained student in files that other programs read, and what it says of single pictures."""
