"""Hyperparameter search with Optuna: trials are ordinary trainings in a study's folder.

`space` says what is tried, `folder` what a study is about, `study` runs it, `results` writes what
came of it.
"""
