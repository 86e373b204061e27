"""Pages, pictures, exports and checks of what an output holds."""
