"""Ollama's own guesses, against what a real Ollama logged."""

from __future__ import annotations

from dataclasses import replace

import pytest
from drover_proxy.vram import guessed_bytes, needed_free_bytes, own_engine_bytes
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.vram.models import GEMMA3_4B, LLAMA31_8B, NOMIC, QWEN25_7B, info

MIB, GIB = 1 << 20, 1 << 30


def test_file_and_cache():
    """The guess is the file and a cache of full attention, f16, for the context of all slots."""
    model = replace(LLAMA31_8B, size_bytes=4_920_738_944)
    assert guessed_bytes(model, context=8192, slots=1) == 4_920_738_944 + GIB
    assert guessed_bytes(model, context=8192, slots=4) == 4_920_738_944 + 4 * GIB
    assert guessed_bytes(model, context=1000, slots=1) == 4_920_738_944 + 1000 * 128 * 1024


def test_windows_and_long_keys_are_not_seen():
    """Neither sliding windows nor key lengths other than embedding / heads are in the guess."""
    assert guessed_bytes(GEMMA3_4B, context=4096, slots=1) == 2 * 34 * 4 * 320 * 4096 * 2


def test_least_kv_heads_of_all_layers():
    """Where layers differ the least heads count, 0 as 1; without the key it is 1; unread, all heads."""

    def model(**keys):
        return info("x", block_count=4, embedding_length=1024, attention__head_count=8, **keys)

    one = 2 * 4 * 128 * 4096 * 2
    assert guessed_bytes(model(attention__head_count_kv=[4, 2, 4, 4]), context=4096, slots=1) == 2 * one
    assert guessed_bytes(model(attention__head_count_kv=[0, 4, 0, 4]), context=4096, slots=1) == one
    assert guessed_bytes(model(), context=4096, slots=1) == one
    assert guessed_bytes(model(attention__head_count_kv=None), context=4096, slots=1) == 8 * one


@pytest.mark.parametrize(("batch", "surcharge"), [(None, 0), (512, 0), (1024, 768 * MIB), (4096, 2 * GIB)])
def test_a_batch_of_the_modelfile_costs_more(batch, surcharge):
    """A large batch that the Modelfile sets is added; one that Ollama chooses never decides."""
    plain = guessed_bytes(QWEN25_7B, context=4096, slots=1)
    assert guessed_bytes(replace(QWEN25_7B, num_batch=batch), context=4096, slots=1) == plain + surcharge


def test_embedding_models_have_no_surcharge():
    """A model that only embeds is never charged for its batch."""
    with_batch = replace(NOMIC, num_batch=2048)
    assert guessed_bytes(with_batch, context=2048, slots=1) == guessed_bytes(NOMIC, context=2048, slots=1)


def test_a_projector_is_not_in_the_file():
    """The projector is a file of its own, which the guess leaves out."""
    model = info("x", size_bytes=5 * GIB, projector_bytes=GIB, block_count=1)
    assert 4 * GIB <= guessed_bytes(model, context=4, slots=1) < 4.1 * GIB


def test_nothing_known_is_guessed_high():
    """A model that could not be read counts as a large one."""
    assert guessed_bytes(info("", size_bytes=GIB), context=4096, slots=1) == 2 * GIB


@given(guess=st.integers(0, 1 << 42))
def test_eighty_percent(guess):
    """The least free memory is just enough by Ollama's whole-number arithmetic, and one byte less isn't."""
    least = needed_free_bytes(guess)
    assert guess <= least * 80 // 100
    assert least == 0 or guess > (least - 1) * 80 // 100


@given(context=st.integers(4, 1 << 18), slots=st.integers(1, 16), more=st.integers(1, 4096))
def test_more_is_never_less(context, slots, more):
    """Both guesses grow with context and slots."""
    for guess in (guessed_bytes, own_engine_bytes):
        size = guess(LLAMA31_8B, context=context, slots=slots)
        assert guess(LLAMA31_8B, context=context + more, slots=slots) >= size
        assert guess(LLAMA31_8B, context=context, slots=slots + 1) >= size
        assert size > 0


def test_own_engine_reckons_without_flash_attention():
    """Before 0.30 the graph grows with heads times context: 2 GiB and more for an 8B at 32768."""
    short = own_engine_bytes(LLAMA31_8B, context=4096, slots=1)
    long = own_engine_bytes(LLAMA31_8B, context=32768, slots=1)
    cache = 7 * 512 * MIB
    assert long - short > cache + 1.6 * GIB


def test_own_engine_measures_its_own_families():
    """What that engine runs itself isn't charged for heads times context."""
    reckoned = own_engine_bytes(replace(LLAMA31_8B, architecture="llama"), context=32768, slots=1)
    measured = info(
        "qwen3", **{k.split(".", 1)[1].replace(".", "__"): v for k, v in LLAMA31_8B.hyperparameters.items()}
    )
    assert reckoned - own_engine_bytes(measured, context=32768, slots=1) > 1.5 * GIB


def test_own_engine_counts_the_cache_by_its_type():
    """A quantised cache is smaller there, as Ollama counts it: 1 byte and half a byte an element."""
    full = own_engine_bytes(LLAMA31_8B, context=8192, slots=1)
    eight = own_engine_bytes(LLAMA31_8B, context=8192, slots=1, kv_type="q8_0")
    assert full - eight == pytest.approx(GIB // 2 * 33 / 32, rel=1e-6)
