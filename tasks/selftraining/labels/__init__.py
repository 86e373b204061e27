"""Human labels in: the formats that label sets are read from."""
