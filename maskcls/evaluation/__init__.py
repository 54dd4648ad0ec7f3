"""What answers are worth: scores, calibration, audits of labels, and the reports that say so."""

from maskcls.evaluation.scoring import read_answers, score_answers, scores_from_confusion

__all__ = ["read_answers", "score_answers", "scores_from_confusion"]
