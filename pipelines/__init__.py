"""The data plane and the tracked lifecycle: media to clips, encoders, and a registry."""
