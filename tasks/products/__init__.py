"""One folder per product; see README.md here."""
