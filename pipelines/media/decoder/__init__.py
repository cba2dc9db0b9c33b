"""Decoding in confined child processes that open no file by name."""
