"""What does one type? A file a command; `options.py` has what several commands share."""
