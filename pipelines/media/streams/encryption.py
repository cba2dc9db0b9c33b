"""Whether a stream is encrypted: decoded all the same, it gives noise without end."""

import struct
from typing import Any

import av.stream
from av.packet import Packet

ENCRYPTED_TAGS = frozenset({b"encv", b"enca", b"drms", b"drmi", b"aavd"})
"""Kinds of samples in MP4 of which only the encryption is known."""
SAMPLE_AES_TAGS = frozenset({b"\xdb", b"\xcf", b"\xc1", b"\xc2"})
"""Types of streams in MPEG-TS that HTTP Live Streaming encrypts in part."""
PROBED_BYTES = 2_000_000
"""Of a transport stream, in which scrambled packets are looked for."""
_TS_PACKET_BYTES = (188, 192, 204)
_SYNC = b"\x47"
_SCRAMBLED = 0x80
_KEY_ID = "enc_key_id"
"""Under this name FFmpeg passes on the key of an encrypted track of Matroska."""


def declares_encryption(stream: av.stream.Stream) -> bool:
    """Whether a container says so itself, before any packet."""
    if any(name.lower() == _KEY_ID for name in stream.metadata):
        return True
    tag = _tag(stream)
    if stream.container.format.name == "mpegts":
        return tag[:1] in SAMPLE_AES_TAGS
    return tag in ENCRYPTED_TAGS


def _tag(stream: av.stream.Stream) -> bytes:
    """The four bytes by which the container names the codec."""
    # Without a decoder there is no codec context, whatever the type stubs say.
    codec: Any = stream.codec_context
    try:
        return codec.codec_tag.encode() if codec else b""
    except UnicodeDecodeError as error:  # PyAV takes them for text, which they need not be
        return error.object


def is_encrypted(packet: "Packet[Any]") -> bool:
    """Whether any byte of a packet is: those of a clear beginning are not.

    The side data (`AVEncryptionInfo` of FFmpeg) is of big-endian words: scheme, two lengths of a
    pattern, sizes of key and vector, number of parts; then key, vector, and for each part how many
    bytes are clear and how many are not. Without parts all are encrypted.
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
    """Whether the beginning of an MPEG transport stream has scrambled packets.

    FFmpeg passes over them, so that nothing is left of their streams.
    """
    for length in _TS_PACKET_BYTES:
        for start in range(min(length, len(data))):
            if data[start : start + 4 * length : length] == _SYNC * 4:
                flags = data[start + 3 :: length]
                return any(flag & _SCRAMBLED for flag in flags)
    return False
