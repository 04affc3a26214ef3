"""The experiments. They share everything below them and never import each other."""
