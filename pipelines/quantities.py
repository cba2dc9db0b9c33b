"""Formats counts, durations and byte sizes for messages, tables and pages."""

_SIZES = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def counted(count: float, noun: str, plural: str | None = None) -> str:
    """Formats a count with its noun, in the singular for 1.

    Args:
        count: Whole, or a fraction such as half a CPU.
        noun: In the singular.
        plural: Default: `noun` with an "s".

    >>> counted(1, "file"), counted(1234, "clip"), counted(2, "class", "classes")
    ('1 file', '1,234 clips', '2 classes')
    """
    return f"{count:,.10g} {noun if count == 1 else plural or f'{noun}s'}"


def duration(seconds: float) -> str:
    """Formats a time span.

    >>> duration(42), duration(185), duration(7800)
    ('42 s', '3 min 05 s', '2 h 10 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def byte_size(num_bytes: float) -> str:
    """Formats a number of bytes in decimal units.

    >>> byte_size(12), byte_size(1_234_000), byte_size(999_960_000)
    ('12 bytes', '1.2 MB', '1.0 GB')
    """
    for unit, size in _SIZES:
        if num_bytes >= 0.99995 * size:  # 999.95 kB is shown as 1.0 MB
            return f"{num_bytes / size:.1f} {unit}"
    return counted(round(num_bytes), "byte")
