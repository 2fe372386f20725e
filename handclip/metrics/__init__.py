"""Retrieval metrics; they know nothing of files, configs or models."""

from handclip.metrics.ranking import RankingResult, rank_gallery, rank_similarities

__all__ = ["RankingResult", "rank_gallery", "rank_similarities"]
