"""XKD in plain PyTorch: the method of arXiv:2211.13929 without cluster, tracking or files.

Start with `xkd.py` (the networks), `losses.py` (the objective) and `train_step.py` (one step).
"""
