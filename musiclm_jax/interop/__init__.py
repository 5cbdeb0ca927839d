"""Other projects' trainers and formats. Each has a folder of its own, and the rest of the package knows none of them."""
