"""The reasons for rejecting a source; plain data, so that settings and pages need no PyAV."""

REASONS = {
    "unreadable": "the file cannot be opened or read",
    "empty_file": "the file has no bytes",
    "too_large": "the file is larger than limits.max_bytes",
    "duplicate": "another source has the same bytes",
    "not_media": "no demuxer of FFmpeg opens it",
    "format_not_allowed": "its container or a codec is not among those of limits.formats (common)",
    "no_streams": "no picture or sound stream has a known decoder",
    "encrypted": "all of its picture and sound are encrypted",
    "undecodable": "no frame or sound could be decoded, or too little for any clip",
    "damaged": "a larger share of its frames is damaged than limits.max_damaged_fraction",
    "too_short": "it is shorter than min_segment_seconds (min_source_seconds if that is given)",
    "too_long": "it is longer than limits.max_seconds",
    "too_many_pixels": "a frame is larger than limits.max_pixels",
    "decoder_crashed": "the process that decoded it died",
    "decoder_timeout": "decoding took longer than limits.max_decode_seconds and max_decode_ratio",
    "out_of_memory": "decoding needs more than limits.max_memory_bytes",
    "no_picture": "it has no picture for a video encoder to embed",
    "no_sound": "it has no sound for an audio encoder to embed",
}
"""Meanings of the reasons."""
ENCRYPTED = "encrypted"
"""A reason, which also stands for the codec of an encrypted stream beside a clear one."""
