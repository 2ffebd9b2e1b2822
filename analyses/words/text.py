"""Text that may hold anything (tokens, file names) made visible: what cannot be printed is shown, not passed on."""


def visible(text: str) -> str:
    """`text` with control characters as their pictures (U+2400 on), direction controls and lone surrogates escaped.

    Tab and newline stay. The result encodes as UTF-8.
    """
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    code = ord(character)
    if code < 0x20 and character not in "\t\n":
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if 0x80 <= code < 0xA0 or 0xD800 <= code <= 0xDFFF or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069:
        return f"\\u{code:04x}"
    return character
