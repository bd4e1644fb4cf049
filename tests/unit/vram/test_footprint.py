"""Weights, buffers and totals against known sums."""

from __future__ import annotations

from dataclasses import replace

import pytest
from drover_proxy.vram import Confidence, Tensor, auto_batch, footprint
from drover_proxy.vram.elements import BLOCKS, bytes_of
from drover_proxy.vram.footprint import CUDA_CONTEXT_BYTES, PROJECTOR_HEADROOM_BYTES, weights_on_gpu

from tests.unit.vram.models import LLAMA31_8B, LLAMA32_3B, NOMIC, QWEN25_7B, info, q4_k_m

MIB = 1024 * 1024

LLAMA32_TENSORS = q4_k_m(
    layers=28,
    embedding=3072,
    feed_forward=8192,
    kv=1024,
    vocabulary=128256,
    tied=True,
    rope_frequencies=True,
)
WEIGHTS = [
    ("llama3.2:3b", LLAMA32_TENSORS, 2_011_539_712, 2_011_539_712),
    (
        "qwen2.5:7b",
        q4_k_m(
            layers=28,
            embedding=3584,
            feed_forward=18944,
            kv=512,
            vocabulary=152064,
            tied=False,
            biases=True,
        ),
        4_677_120_000,
        4_370_558_976,
    ),
    (
        "llama3.1:8b",
        q4_k_m(
            layers=32,
            embedding=4096,
            feed_forward=14336,
            kv=1024,
            vocabulary=128256,
            tied=False,
            rope_frequencies=True,
        ),
        4_912_898_304,
        4_617_396_480,
    ),
    (
        "mistral:7b",
        q4_k_m(layers=32, embedding=4096, feed_forward=14336, kv=1024, vocabulary=32768, tied=False),
        4_372_054_016,
        4_296_556_544,
    ),
]


@pytest.mark.parametrize(("name", "tensors", "total", "on_gpu"), WEIGHTS)
def test_known_weights(name, tensors, total, on_gpu):
    """Sums of Q4_K_M models are exact, with the input embedding left out where it stays on the CPU."""
    assert sum(bytes_of(tensor.elements, tensor.type) for tensor in tensors) == total
    assert weights_on_gpu(info("llama", name=name, tensors=tensors)) == (on_gpu, True)


def test_total_of_llama32():
    """The total of llama3.2:3b is what /api/ps of a real server reports, and CUDA's own besides."""
    model = replace(LLAMA32_3B, tensors=LLAMA32_TENSORS)
    result = footprint(model, context=4096, slots=1, batch=512)
    reported = int(2622.85 * MIB)
    assert reported <= result.total_bytes - result.overhead_bytes <= reported + 5 * MIB
    assert result.overhead_bytes == CUDA_CONTEXT_BYTES
    assert result.confidence is Confidence.HIGH


def test_without_tensors_the_file_counts():
    """Without tensors the size of all layers stands for the weights, and the confidence says so."""
    result = footprint(replace(LLAMA31_8B, size_bytes=5_000_000_000), context=4096)
    assert result.weights_bytes == 5_000_000_000
    assert result.confidence is Confidence.MEDIUM


def test_missing_keys_fall_back_to_the_rough_rule():
    """Without the number of KV heads Ollama's own rule stands in, at low confidence and never too low."""
    known = footprint(replace(QWEN25_7B, size_bytes=4_683_075_271), context=8192)
    keys = {k: v for k, v in QWEN25_7B.hyperparameters.items() if "head_count_kv" not in k}
    keys["qwen2.attention.head_count_kv"] = None
    rough = footprint(replace(QWEN25_7B, size_bytes=4_683_075_271, hyperparameters=keys), context=8192)
    assert rough.confidence is Confidence.LOW
    assert rough.total_bytes >= known.total_bytes


def test_a_model_of_which_nothing_is_known():
    """With no metadata at all there is still a prediction that grows with the context."""
    model = info("", size_bytes=1_000_000_000)
    small, large = footprint(model, context=4096), footprint(model, context=32768)
    assert small.confidence is Confidence.LOW
    assert 1_000_000_000 < small.total_bytes < large.total_bytes


def test_more_gpus_cost_more():
    """Pipeline copies and CUDA's own are paid on every GPU: 8 GiB each at 262144 tokens and batch 2048."""
    model = replace(
        LLAMA31_8B, hyperparameters={**LLAMA31_8B.hyperparameters, "llama.context_length": 262144}
    )
    one = footprint(model, context=262144, batch=2048, gpu_count=1)
    two = footprint(model, context=262144, batch=2048, gpu_count=2)
    assert two.fixed_bytes - one.fixed_bytes == 8 * 1024 * MIB
    assert two.overhead_bytes == 2 * one.overhead_bytes
    assert two.weights_bytes == one.weights_bytes


def test_without_flash_attention_the_scores_are_kept():
    """Without flash attention the scores of all heads are materialised."""
    on = footprint(LLAMA31_8B, context=8192, batch=512)
    off = footprint(LLAMA31_8B, context=8192, batch=512, flash_attention=False)
    assert off.compute_bytes - on.compute_bytes == 32 * 8192 * 512 * 4


def test_projector_counts_and_wants_headroom():
    """A projector is weights too, and Ollama wants a GiB free besides."""
    plain = replace(LLAMA32_3B, tensors=LLAMA32_TENSORS)
    seeing = replace(plain, projector_bytes=800 * MIB)
    result, without = footprint(seeing, context=4096), footprint(plain, context=4096)
    assert result.weights_bytes - without.weights_bytes == 800 * MIB
    assert result.headroom_bytes == PROJECTOR_HEADROOM_BYTES
    assert without.headroom_bytes == 0


def test_projector_tensors_are_summed():
    """A projector whose tensors are known is counted by them."""
    tensors = (Tensor("v.patch_embd.weight", "F16", (1024, 1024)),)
    plain = replace(LLAMA32_3B, tensors=LLAMA32_TENSORS)
    result = footprint(replace(plain, projector_tensors=tensors), context=4096)
    assert result.weights_bytes - footprint(plain, context=4096).weights_bytes == 2 * MIB


def test_the_vocabulary_is_that_of_the_embedding():
    """The embedding's tensor knows the vocabulary better than a list of tokens that may be cut."""
    keys = {**LLAMA32_3B.hyperparameters, "llama.vocab_size": 3}
    cut = replace(LLAMA32_3B, hyperparameters=keys, tensors=LLAMA32_TENSORS)
    whole = replace(LLAMA32_3B, tensors=LLAMA32_TENSORS)
    assert footprint(cut, context=4096) == footprint(whole, context=4096)


def test_encoder_has_no_cache_and_no_logits():
    """An embedding model takes its weights, activations and CUDA's own."""
    result = footprint(replace(NOMIC, size_bytes=274_302_450), context=2048, slots=1)
    assert result.kv_bytes == 0
    assert result.compute_bytes < 128 * MIB


def test_mixture_of_experts_counts_the_used_ones_in_the_buffer():
    """The activations are those of the experts in use."""
    keys = {**LLAMA31_8B.hyperparameters, "llama.vocab_size": 32000}
    base = footprint(replace(LLAMA31_8B, hyperparameters=keys), context=4096, batch=512)
    keys |= {"llama.expert_count": 8, "llama.expert_used_count": 2}
    moe = footprint(replace(LLAMA31_8B, hyperparameters=keys), context=4096, batch=512)
    assert moe.compute_bytes > base.compute_bytes


@pytest.mark.parametrize(("context", "batch"), [(4096, 512), (8192, 1024), (65536, 2048)])
def test_automatic_batch(context, batch):
    """The batch grows with the context as Ollama's does."""
    assert auto_batch(LLAMA31_8B, context) == batch


def test_named_batch_wins():
    """PARAMETER num_batch is taken; an embedding model always has 2048."""
    assert auto_batch(replace(LLAMA31_8B, num_batch=256), 65536) == 256
    assert auto_batch(NOMIC, 2048) == 2048


def test_unknown_tensor_type_means_unknown_weights():
    """A type that isn't in the table isn't counted as nothing: the file's size stands in."""
    model = info("llama", size_bytes=77, tensors=(Tensor("a", "Q7_X", (32,)),))
    assert weights_on_gpu(model) == (77, False)


@pytest.mark.parametrize(
    ("type_name", "bits"),
    [("F16", 16), ("Q8_0", 8.5), ("Q4_0", 4.5), ("Q4_K", 4.5), ("Q6_K", 6.5625), ("MXFP4", 4.25)],
)
def test_bits_per_element(type_name, bits):
    """The table holds the well-known bits per weight."""
    assert bytes_of(256, type_name) * 8 / 256 == bits


def test_table_is_whole():
    """Every type has a positive block, and names are looked up in any case."""
    assert all(size > 0 and count > 0 for size, count in BLOCKS.values())
    assert bytes_of(64, "q8_0") == 68
    assert bytes_of(1, "Q8_0") == 2
