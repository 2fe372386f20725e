"""Losses of the training stages: every term maps a batch of features and its labels to one scalar.

Build the weighted sum with `handclip.loss.loss_factory.build_loss`.
"""
