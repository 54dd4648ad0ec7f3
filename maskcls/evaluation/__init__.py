"""Scoring of prediction files against the ground truth."""

from maskcls.evaluation.scoring import read_answers, score_answers, scores_from_confusion

__all__ = ["read_answers", "score_answers", "scores_from_confusion"]
