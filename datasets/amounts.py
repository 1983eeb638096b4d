"""Amounts as people read them."""


def bytes_text(size_bytes: float) -> str:
    """Returns a size in decimal units with three digits: 26.3 MB."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.0f} PB"
