"""What learns on top of an encoder: probes of frozen features, and fine-tuning."""
