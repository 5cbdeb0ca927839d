"""T5X (github.com/google-research/t5x) trains, evaluates and runs our stages, unmodified. docs/t5x.md says how; requirements/t5x.txt lists what it needs.

`model.py` is a stage as T5X's model, `data.py` its batches from a work folder, `seqio_tasks.py` the same as seqio tasks, `axes.py` the names of all axes,
`checkpoints.py` converts weights, `__main__.py` is the command.
"""
