"""Encoders become registered versions, with a card and an alias."""
