"""Files of the published method: their names, their bytes, their encoders."""
