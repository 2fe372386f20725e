"""Retrieval metrics; they know nothing of files, configs or models."""

from handclip.metrics.ranking import RankingResult, rank_gallery, rank_similarities
from handclip.metrics.reranking import rerank_gallery, reranked_distances

__all__ = ["RankingResult", "rank_gallery", "rank_similarities", "rerank_gallery", "reranked_distances"]
