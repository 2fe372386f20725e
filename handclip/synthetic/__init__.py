"""Parametric photographs of hands in the layout of 11k Hands: data for a demo and for tests that need no download."""

from handclip.synthetic.dataset import WITH_RING, SyntheticHands, generate, is_generated, render_hand

__all__ = ["WITH_RING", "SyntheticHands", "generate", "is_generated", "render_hand"]
