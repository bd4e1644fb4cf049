"""What one element of each ggml type takes: blocks of so many elements in so many bytes."""

from __future__ import annotations

BLOCKS: dict[str, tuple[int, int]] = {
    # type: (bytes a block, elements a block)
    "F64": (8, 1),
    "F32": (4, 1),
    "F16": (2, 1),
    "BF16": (2, 1),
    "I8": (1, 1),
    "I16": (2, 1),
    "I32": (4, 1),
    "I64": (8, 1),
    "Q8_0": (34, 32),
    "Q4_0": (18, 32),
    "Q4_1": (20, 32),
    "Q5_0": (22, 32),
    "Q5_1": (24, 32),
    "Q2_K": (84, 256),
    "Q3_K": (110, 256),
    "Q4_K": (144, 256),
    "Q5_K": (176, 256),
    "Q6_K": (210, 256),
    "IQ4_XS": (136, 256),
    "IQ4_NL": (18, 32),
    "IQ3_S": (110, 256),
    "IQ3_XXS": (98, 256),
    "IQ2_S": (82, 256),
    "IQ2_XS": (74, 256),
    "IQ2_XXS": (66, 256),
    "IQ1_S": (50, 256),
    "IQ1_M": (56, 256),
    "TQ1_0": (54, 256),
    "TQ2_0": (66, 256),
    "MXFP4": (17, 32),
    "NVFP4": (36, 64),
}


def bytes_of(elements: int, type_name: str) -> int | None:
    """Return the bytes of that many elements, rounded up; None for a type that isn't in the table."""
    block = BLOCKS.get(type_name.upper())
    if block is None:
        return None
    size, count = block
    return -(-elements * size // count)
