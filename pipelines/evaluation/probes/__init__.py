"""Classifiers on frozen features: probes, SVMs and the folds and tasks that fit them."""
