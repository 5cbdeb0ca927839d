"""Clips of sampled instruments: tunes by people and composed ones, arranged for a band, played by FluidSynth and mixed as a record is.

A clip is described by `attributes`; its notes are a `score`, which names `instruments`.
"""
