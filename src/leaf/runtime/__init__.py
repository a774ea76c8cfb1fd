"""What runs where queries are answered. Nothing here imports torch."""
