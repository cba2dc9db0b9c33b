"""Networks on disk: the checkpoint of a training, and the encoder inside a registered model."""
