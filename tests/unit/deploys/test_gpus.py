"""GPUs by PCI id, and which kernel modules they need."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from deploys.lib.gpus import Gpu, UnsupportedError, architecture_of, choose_flavour, gpu_from_pci

MODELS = yaml.safe_load((Path(__file__).resolve().parents[3] / "lab/gpu/models.yaml").read_text())


def gpus(*architectures):
    """Return GPUs of these architectures."""
    return tuple(Gpu(f"0000:0{i}:00.0", 0x1234, name) for i, name in enumerate(architectures))


@pytest.mark.parametrize(
    ("device_id", "architecture"),
    [
        (0x13F2, "maxwell"),  # M60
        (0x15F8, "pascal"),  # P100
        (0x1B38, "pascal"),  # P40
        (0x1DB5, "volta"),  # V100
        (0x1EB8, "turing"),  # T4
        (0x20B2, "ampere"),  # A100
        (0x2236, "ampere"),  # A10
        (0x2204, "ampere"),  # RTX 3090
        (0x2330, "hopper"),  # H100
        (0x2335, "hopper"),  # H200
        (0x2342, "grace-hopper"),  # GH200
        (0x27B8, "ada"),  # L4
        (0x26B9, "ada"),  # L40S
        (0x2684, "ada"),  # RTX 4090
        (0x2901, "blackwell"),  # B200
        (0x2B85, "blackwell"),  # RTX 5090
        (0x3182, "blackwell"),  # B300
        (0x102D, "kepler"),  # K80
        (0x9999, "unknown"),
    ],
)
def test_architectures(device_id, architecture):
    """A card's PCI id tells its architecture."""
    assert architecture_of(device_id) == architecture


@pytest.mark.parametrize("model", sorted(MODELS))
def test_the_labs_cards_are_known(model):
    """Every card that the lab simulates is read as what it is."""
    device = MODELS[model]["pci_device_id"][:6]
    assert gpu_from_pci("0000:01:00.0", device).architecture == MODELS[model]["arch"]


def test_a_device_file_that_makes_no_sense_is_unknown():
    """Garbage from sysfs is an unknown card, not a crash."""
    assert gpu_from_pci("0000:01:00.0", "zz").architecture == "unknown"


@pytest.mark.parametrize(
    ("architectures", "wanted", "branch", "flavour"),
    [
        (["ada"], "auto", 580, "open"),
        (["ada", "ampere"], "auto", 595, "open"),
        (["pascal"], "auto", 580, "proprietary"),
        (["pascal", "ada"], "auto", 580, "proprietary"),
        (["blackwell"], "auto", 580, "open"),
        (["unknown"], "auto", 580, "open"),
        (["ada"], "proprietary", 580, "proprietary"),
        (["ada"], "auto", 615, "open"),
    ],
)
def test_flavour_that_fits(architectures, wanted, branch, flavour):
    """The flavour fits every card of the host; open where both do."""
    assert choose_flavour(gpus(*architectures), wanted, branch) == flavour


@pytest.mark.parametrize(
    ("architectures", "wanted", "branch", "message"),
    [
        (["blackwell"], "proprietary", 580, "0000:00:00.0 (blackwell, 10de:1234): proprietary modules would"),
        (["pascal"], "open", 580, "it needs proprietary"),
        (["volta"], "auto", 595, "its last is 580. Next: set nvidia_driver_branch"),
        (["pascal", "blackwell"], "auto", 580, "no kernel modules of branch 580 fit all GPUs"),
        (["ada"], "proprietary", 620, "branch 620 has only open kernel modules"),
        (["kepler"], "auto", 580, "too old"),
    ],
)
def test_flavours_that_do_not_fit_are_refused(architectures, wanted, branch, message):
    """A combination that would install and then not bind is refused, and the card named."""
    with pytest.raises(UnsupportedError, match=re.escape(message)):
        choose_flavour(gpus(*architectures), wanted, branch)
