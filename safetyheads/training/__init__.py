"""What becomes of a chat model that is trained to refuse: its siblings, and the ladder to them."""
