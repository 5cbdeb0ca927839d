"""Other projects' trainers, models and formats. The rest of the package knows T5X not at all, and models of transformers only by these functions."""
