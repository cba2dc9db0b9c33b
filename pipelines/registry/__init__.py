"""Registers encoders as versions with a card and an alias, and finds them by URI."""
