"""The stand-in packages of NVIDIA's driver, named and tied together as in NVIDIA's Debian repository."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lab.mirror.debs import File, Package, payload

VERSIONS = ("580.126.20", "580.159.03", "595.45.04")
GPU = Path(__file__).resolve().parents[1] / "gpu"
LICENSES = {"open": "Dual MIT/GPL", "proprietary": "NVIDIA"}
# What a pin holds together. Not nvidia-container-*: those have versions of their own.
PINNED = (
    "cuda-drivers libcuda1 libnvidia-ml1 nvidia-driver nvidia-driver-cuda nvidia-fabricmanager "
    "nvidia-kernel-dkms nvidia-kernel-open-dkms nvidia-kernel-support nvidia-modprobe nvidia-open "
    "nvidia-persistenced"
)
ENABLE = """
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl enable --quiet {unit}
    systemctl {verb} --no-block {unit} || true
fi
"""
DISABLE = """
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then systemctl disable --quiet --now {unit} || true; fi
"""
DKMS_ADD = """
if [ "$1" = configure ]; then
    dkms add -m nvidia -v {version}
    kernel=$(uname -r)
    if [ -e "/lib/modules/$kernel/build" ]; then
        echo "Building for $kernel"
        dkms build -m nvidia -v {version} -k "$kernel"
        dkms install -m nvidia -v {version} -k "$kernel"
    else
        echo "Module build for kernel $kernel was skipped since the"
        echo "kernel headers for this kernel do not seem to be installed."
    fi
fi
"""
DKMS_REMOVE = "if command -v dkms >/dev/null; then dkms remove -m nvidia -v {version} --all || true; fi"
USER = """
if [ "$1" = configure ] && ! getent passwd nvpd >/dev/null; then
    useradd --system --user-group --no-create-home --home-dir /run/nvpd --shell /usr/sbin/nologin nvpd
fi
"""


def branch(version: str) -> str:
    """The branch of a driver version."""
    return version.partition(".")[0]


def packages(library: bytes, architecture: str, triplet: str) -> Iterator[Package]:
    """Every package of every version; `library` is the compiled libnvidia-ml.so.1."""
    newest: dict[str, str] = {}
    for version in VERSIONS:
        newest[branch(version)] = version
        yield _pin(version, f"{version}*", version)
        yield from _kernel(version, architecture)
        yield from _user(version, architecture, triplet, library)
        yield from _daemons(version, architecture)
        yield _computing(version, architecture)
        yield from _meta(version, architecture)
    for name, version in newest.items():
        yield _pin(name, f"{name}.*", version)


def _pin(suffix: str, pattern: str, version: str) -> Package:
    name = f"nvidia-driver-pinning-{suffix}"
    text = f"Package: {PINNED}\nPin: version {pattern}\nPin-Priority: 1000\n"
    return Package(
        name,
        f"{version}-1",
        f"keeps the driver at {suffix}",
        fields={
            "Provides": "nvidia-driver-pinning",
            "Conflicts": "nvidia-driver-pinning",
            "Replaces": "nvidia-driver-pinning",
        },
        # apt ignores files here whose names have any other ending.
        files={f"etc/apt/preferences.d/{name}.pref": File(text.encode())},
    )


def _kernel(version: str, architecture: str) -> Iterator[Package]:
    for flavour, name, other in (
        ("open", "nvidia-kernel-open-dkms", "nvidia-kernel-dkms"),
        ("proprietary", "nvidia-kernel-dkms", "nvidia-kernel-open-dkms"),
    ):
        info = f"version={version}\nflavour={flavour}\nlicense={LICENSES[flavour]}\nsupported=external\n"
        source = f"usr/src/nvidia-{version}"
        yield Package(
            name,
            f"{version}-1",
            f"NVIDIA's {flavour} kernel modules (DKMS)",
            architecture=architecture,
            fields={
                "Depends": f"dkms, nvidia-kernel-support (= {version}-1), nvidia-modprobe (= {version}-1)",
                "Provides": f"nvidia-kernel-{version}",
                "Conflicts": other,
                "Replaces": other,
            },
            files={
                f"{source}/dkms.conf": File(
                    f'PACKAGE_NAME="nvidia"\nPACKAGE_VERSION="{version}"\nAUTOINSTALL="yes"\n'.encode()
                ),
                f"{source}/module.info": File(info.encode()),
            },
            scripts={
                "postinst": DKMS_ADD.format(version=version),
                "prerm": DKMS_REMOVE.format(version=version),
            },
        )
    yield Package(
        "nvidia-kernel-support",
        f"{version}-1",
        "what NVIDIA's kernel modules need beside them",
        architecture=architecture,
        files={"etc/modprobe.d/nvidia-blacklists-nouveau.conf": File(b"blacklist nouveau\n")},
    )


def _user(version: str, architecture: str, triplet: str, library: bytes) -> Iterator[Package]:
    folder = f"usr/lib/{triplet}"
    yield Package(
        "libnvidia-ml1",
        f"{version}-1",
        "NVML",
        architecture=architecture,
        files={f"{folder}/libnvidia-ml.so.{version}": File(library)},
        links={f"{folder}/libnvidia-ml.so.1": f"libnvidia-ml.so.{version}"},
        scripts={"postinst": "ldconfig", "postrm": "ldconfig"},
    )
    yield Package("libcuda1", f"{version}-1", "CUDA driver library", architecture=architecture)
    yield Package(
        "nvidia-modprobe",
        f"{version}-1",
        "loads NVIDIA's modules and makes the device nodes",
        architecture=architecture,
        files={"usr/bin/nvidia-modprobe": payload("nvidia-modprobe", 0o755)},
    )


def _daemons(version: str, architecture: str) -> Iterator[Package]:
    unit = "nvidia-persistenced.service"
    yield Package(
        "nvidia-persistenced",
        f"{version}-1",
        "keeps the driver's state when no client is there",
        architecture=architecture,
        fields={"Depends": f"libnvidia-ml1 (= {version}-1)"},
        files={
            "usr/bin/nvidia-persistenced": payload("nvidia-persistenced", 0o755),
            f"lib/systemd/system/{unit}": payload(unit),
        },
        scripts={
            "postinst": USER + ENABLE.format(unit=unit, verb="start"),
            "prerm": DISABLE.format(unit=unit),
        },
    )
    yield Package(
        "nvidia-fabricmanager",
        f"{version}-1",
        "joins GPUs over NVSwitch; of exactly the driver's version",
        architecture=architecture,
        files={
            "usr/bin/nv-fabricmanager": payload("nv-fabricmanager", 0o755, VERSION=version),
            "usr/share/nvidia/nvswitch/fabricmanager.cfg": File(b"LOG_LEVEL=4\n"),
            "lib/systemd/system/nvidia-fabricmanager.service": payload("nvidia-fabricmanager.service"),
        },
    )


def _computing(version: str, architecture: str) -> Package:
    return Package(
        "nvidia-driver-cuda",
        f"{version}-1",
        "NVIDIA's driver for computing, without a display",
        architecture=architecture,
        fields={
            "Depends": f"libcuda1 (= {version}-1), libnvidia-ml1 (= {version}-1), "
            f"nvidia-kernel-open-dkms (= {version}-1) | nvidia-kernel-dkms (= {version}-1), python3",
            "Recommends": f"nvidia-persistenced (= {version}-1)",
            "Conflicts": "nvidia-smi",
            "Replaces": "nvidia-smi",
        },
        files={
            "usr/bin/nvidia-smi": File(
                b'#!/bin/sh\nexec /usr/bin/python3 -BES /usr/lib/nvidia-smi/smi.py "$@"\n', 0o755
            ),
            **{
                f"usr/lib/nvidia-smi/{name}": File((GPU / name).read_bytes())
                for name in ("smi.py", "smi_nvml.py")
            },
        },
    )


def _meta(version: str, architecture: str) -> Iterator[Package]:
    wants = {
        "nvidia-driver": f"nvidia-driver-cuda (= {version}-1)",
        "nvidia-open": f"nvidia-driver (= {version}-1), nvidia-kernel-open-dkms (= {version}-1)",
        "cuda-drivers": f"nvidia-driver (= {version}-1), nvidia-kernel-dkms (= {version}-1)",
    }
    for name, depends in wants.items():
        yield Package(
            name,
            f"{version}-1",
            "NVIDIA's driver, all of it",
            architecture=architecture,
            fields={"Depends": depends},
        )


def kernel_packages(release: str, architecture: str) -> Iterator[Package]:
    """DKMS, and the headers of the kernel that runs here (the hosts run it too)."""
    yield Package(
        "dkms", "3.0.10-8+deb12u1", "builds kernel modules", files={"usr/sbin/dkms": payload("dkms", 0o755)}
    )
    headers = f"linux-headers-{release}"
    yield Package(
        headers,
        "1-1",
        f"headers of Linux {release}",
        architecture=architecture,
        files={f"usr/src/{headers}/Makefile": File(b"# A stand-in: nothing is compiled in the lab.\n")},
        links={f"lib/modules/{release}/build": f"/usr/src/{headers}"},
        scripts={
            "postinst": 'if [ "$1" = configure ] && command -v dkms >/dev/null; then dkms autoinstall; fi'
        },
    )
    yield Package(
        f"linux-headers-{architecture}",
        "1-1",
        "headers of the newest Linux",
        architecture=architecture,
        fields={"Depends": headers},
    )
