"""Networks at rest: the checkpoint of a training, and the encoder inside a registered model."""
