"""A clip of the sampled corpus: from its number to its attributes, captions and wave."""
