"""What is trained here? Siblings of a chat model that refuse, and sparse decoders of what a model holds."""
