"""How does it look? One function a figure, drawn from a table with documented columns; plots never compute scores."""
