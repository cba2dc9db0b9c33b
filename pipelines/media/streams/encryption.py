"""Detects encrypted streams, which would otherwise decode to noise."""

import struct
from typing import Any

import av.stream
from av.packet import Packet

ENCRYPTED_TAGS = frozenset({b"encv", b"enca", b"drms", b"drmi", b"aavd"})
"""Sample entries of MP4 that only tell that a stream is encrypted."""
SAMPLE_AES_TAGS = frozenset({b"\xdb", b"\xcf", b"\xc1", b"\xc2"})
"""Stream types of MPEG-TS that HTTP Live Streaming encrypts in part."""
PROBED_BYTES = 2_000_000
"""Bytes of a transport stream to search for scrambled packets."""
_TS_PACKET_BYTES = (188, 192, 204)
_SYNC = b"\x47"
_SCRAMBLED = 0x80
_KEY_ID = "enc_key_id"
"""Metadata key under which FFmpeg reports the key of an encrypted Matroska track."""


def declares_encryption(stream: av.stream.Stream) -> bool:
    """Returns whether the container declares that a stream is encrypted."""
    if any(name.lower() == _KEY_ID for name in stream.metadata):
        return True
    tag = _tag(stream)
    if stream.container.format.name == "mpegts":
        return tag[:1] in SAMPLE_AES_TAGS
    return tag in ENCRYPTED_TAGS


def _tag(stream: av.stream.Stream) -> bytes:
    """Returns the four bytes by which the container names the codec."""
    # Without a decoder there is no codec context; the type stubs are wrong.
    codec: Any = stream.codec_context
    try:
        return codec.codec_tag.encode() if codec else b""
    except UnicodeDecodeError as error:  # PyAV decodes them as text, which they need not be
        return error.object


def is_encrypted(packet: "Packet[Any]") -> bool:
    """Returns whether any byte of a packet is encrypted; streams may begin in the clear.

    The side data (FFmpeg's `AVEncryptionInfo`) has big-endian words: the scheme, two lengths of a
    pattern, the sizes of key and vector, and the number of parts. Then follow the key, the vector,
    and the number of clear and encrypted bytes of each part. Without parts, all are encrypted.
    """
    if not packet.has_sidedata("encryption_info"):
        return False
    data = bytes(packet.get_sidedata("encryption_info"))
    if len(data) < 24:
        return True
    _, _, _, key_size, vector_size, num_parts = struct.unpack(">6I", data[:24])
    parts = data[24 + key_size + vector_size :][: 8 * num_parts]
    return not num_parts or any(
        part for _, part in struct.iter_unpack(">2I", parts[: len(parts) // 8 * 8])
    )


def is_scrambled(data: bytes) -> bool:
    """Returns whether the beginning of an MPEG transport stream has scrambled packets.

    FFmpeg skips them, so their streams appear to be empty.
    """
    for length in _TS_PACKET_BYTES:
        for start in range(min(length, len(data))):
            if data[start : start + 4 * length : length] == _SYNC * 4:
                flags = data[start + 3 :: length]
                return any(flag & _SCRAMBLED for flag in flags)
    return False
