"""What kitchen uses of SciPy."""
