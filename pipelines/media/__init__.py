"""Bytes of one media file become frames and samples on one clock."""
