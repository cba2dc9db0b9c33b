"""Decoding of one media file into frames and samples on one clock."""
