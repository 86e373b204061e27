"""What an output holds: layout, schemas, rows, encoding, commit, listing, views."""
