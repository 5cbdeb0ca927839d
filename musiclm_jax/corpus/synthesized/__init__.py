"""Clips that need no samples: composed by rules and rendered by a small synthesizer, with NumPy and SciPy alone.

Attributes are drawn (`attributes`), turned into notes (`compose`, `endings`), rendered (`voices`, `synthesis`) and described (`captions`). `variants` renders
the melody of a clip with other instruments, hums it or whistles it.
"""
