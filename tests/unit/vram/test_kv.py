"""The cache's formulas against known allocations (logs of real servers, gguf-parser, exact arithmetic)."""

from __future__ import annotations

import pytest
from drover_proxy.vram.kv import MissingHyperparameterError, kv_bytes

from tests.unit.vram.models import (
    GEMMA3_4B,
    GPT_OSS_20B,
    LLAMA31_8B,
    LLAMA32_3B,
    MISTRAL_7B,
    NOMIC,
    QWEN25_7B,
    QWEN25_32B,
    dense,
    info,
)

VECTORS = [
    (LLAMA31_8B, 8192, 1, "f16", 512, 1_073_741_824),
    (LLAMA31_8B, 8192, 1, "q8_0", 512, 570_425_344),
    (LLAMA31_8B, 8192, 1, "q4_0", 512, 301_989_888),
    (LLAMA31_8B, 8192, 4, "f16", 512, 4_294_967_296),
    (QWEN25_7B, 32768, 1, "f16", 512, 1_879_048_192),
    (QWEN25_7B, 131072, 1, "f16", 512, 7_516_192_768),
    (QWEN25_32B, 32768, 1, "f16", 512, 8_589_934_592),
    (MISTRAL_7B, 32768, 1, "f16", 512, 4_294_967_296),
    (GEMMA3_4B, 131072, 1, "f16", 512, 2_866_806_784),
    (GPT_OSS_20B, 131072, 1, "f16", 2048, 3_277_848_576),
    (LLAMA32_3B, 32768, 1, "f16", 512, 3_758_096_384),
    (LLAMA32_3B, 4096, 1, "f16", 512, 469_762_048),
    (NOMIC, 2048, 1, "f16", 512, 0),
]


@pytest.mark.parametrize(("model", "context", "slots", "kv_type", "batch", "expected"), VECTORS)
def test_known_caches(model, context, slots, kv_type, batch, expected):
    """Caches that real servers have logged come out to the byte."""
    assert kv_bytes(model, context=context, slots=slots, kv_type=kv_type, batch=batch) == expected


def test_context_is_padded():
    """A sequence's cells are rounded up to 256, and each slot is rounded by itself."""
    assert kv_bytes(LLAMA31_8B, context=1000, slots=3) == kv_bytes(LLAMA31_8B, context=1024, slots=3)


def test_context_ends_at_the_training_context():
    """No more cells than the model was trained for are allocated."""
    assert kv_bytes(MISTRAL_7B, context=100_000, slots=1) == kv_bytes(MISTRAL_7B, context=32768, slots=1)


def test_small_context_in_a_window():
    """A context smaller than the window needs no more than the context."""
    assert kv_bytes(GEMMA3_4B, context=512, slots=1) == 34 * 512 * 4096


def test_latent_attention_holds_one_row_a_cell():
    """MLA caches kv_lora_rank + rope dimensions, keys only."""
    model = dense(
        "deepseek2",
        61,
        128,
        1,
        7168,
        attention__key_length_mla=192,
        attention__kv_lora_rank=512,
        rope__dimension_count=64,
    )
    assert kv_bytes(model, context=4096, slots=1) == 61 * 4096 * 576 * 2


def test_deepseek_without_latent_attention():
    """Old conversions cache full heads: 4.8 MiB a token."""
    model = dense("deepseek2", 61, 128, 128, 7168, attention__key_length=192, attention__value_length=128)
    assert kv_bytes(model, context=256, slots=1) == 256 * 61 * 128 * (192 + 128) * 2


def test_heads_may_differ_by_layer():
    """An array of KV heads is summed layer by layer; 0 means no attention there."""
    model = dense("deci", 4, 8, 0, 1024, context_length=4096)
    model = type(model)(
        name=model.name,
        blob=model.blob,
        size_bytes=0,
        architecture="deci",
        hyperparameters={**model.hyperparameters, "deci.attention.head_count_kv": [8, 0, 4, 2]},
    )
    assert kv_bytes(model, context=1024, slots=1) == 1024 * (8 + 4 + 2) * 128 * 2 * 2


def test_recurrent_state_does_not_grow_with_context():
    """A pure recurrent model has a state a sequence and nothing that depends on the context."""
    model = info(
        "mamba", block_count=2, embedding_length=8, ssm__inner_size=16, ssm__state_size=4, ssm__conv_kernel=4
    )
    expected = 2 * 4 * (3 * 16 + 4 * 16)
    assert kv_bytes(model, context=512, slots=1) == kv_bytes(model, context=65536, slots=1) == expected
    assert kv_bytes(model, context=512, slots=3) == 3 * expected


def test_hybrid_has_attention_in_every_nth_layer():
    """`full_attention_interval` leaves one layer in four with a cache, the others with a state."""
    model = dense(
        "qwen3next",
        8,
        4,
        2,
        512,
        full_attention_interval=4,
        ssm__inner_size=64,
        ssm__state_size=16,
        ssm__conv_kernel=4,
        ssm__group_count=2,
    )
    attention = 2 * 1024 * (2 * 128 * 2) * 2
    state = 6 * 4 * (3 * (64 + 2 * 2 * 16) + 16 * 64)
    assert kv_bytes(model, context=1024, slots=1) == attention + state


def test_a_null_array_is_not_guessed():
    """A show without verbose leaves arrays null: the caller must be told, not given a wrong number."""
    model = dense("llama", 4, 8, None, 1024)
    with pytest.raises(MissingHyperparameterError, match="head_count_kv"):
        kv_bytes(model, context=1024, slots=1)


def test_unknown_cache_type_is_not_guessed():
    """A type of cache that isn't in the table raises."""
    with pytest.raises(MissingHyperparameterError, match="q9_9"):
        kv_bytes(LLAMA31_8B, context=1024, slots=1, kv_type="q9_9")


def test_exaone4_small_has_no_window():
    """exaone4 has windows only in its 64 layer size."""
    small = dense("exaone4", 30, 32, 8, 4096, attention__sliding_window=4096)
    large = dense("exaone4", 64, 32, 8, 4096, attention__sliding_window=4096)
    assert kv_bytes(small, context=131072, slots=1) == 30 * 131072 * 8 * 128 * 2 * 2
    assert kv_bytes(large, context=131072, slots=1) < 64 * 131072 * 8 * 128 * 2 * 2 / 3


def test_layers_that_share_a_cache_have_none():
    """The last `shared_kv_layers` layers look into an earlier layer's cache."""
    whole = dense("gemma3n", 10, 8, 2, 2048)
    shared = dense("gemma3n", 10, 8, 2, 2048, attention__shared_kv_layers=5)
    assert kv_bytes(shared, context=1024, slots=1) * 2 == kv_bytes(whole, context=1024, slots=1)
