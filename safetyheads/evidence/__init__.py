"""Is a score more than chance, would other prompts give it, and what did others find?"""
