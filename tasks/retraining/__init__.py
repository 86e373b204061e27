"""The turns of the self-training loop: what a teacher's labels teach, what a student is worth, what is remembered."""
