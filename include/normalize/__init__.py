"""Published values to canonical ones: pure functions, columns in and columns out."""
