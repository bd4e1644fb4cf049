"""libnvidia-ml.so.1 over simulated GPUs, through the real nvidia-ml-py."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from lab.gpu.profile import host_gpus, models
from lab.gpu.state import claim, edit
from tests.unit.lab.gpu_support import DRIVER, make_box, needs_compiler

pytestmark = needs_compiler
MIB = 1 << 20
START = "n.nvmlInit()\nh = n.nvmlDeviceGetHandleByIndex(0)\n"


def lose(box):
    """The command that lets the first GPU fall off the bus."""
    return [sys.executable, "-m", "lab.gpu", "fault", str(box.state), "gpu0", "lost"]


def test_the_system_says_driver_library_and_cuda(box):
    """Versions of the driver, of the library and of CUDA are those of the loaded driver."""
    answer = box.nvml(
        "n.nvmlInit()\nanswer = [n.nvmlSystemGetDriverVersion(), n.nvmlSystemGetNVMLVersion(),"
        "n.nvmlSystemGetCudaDriverVersion(), n.nvmlSystemGetCudaDriverVersion_v2(), n.nvmlDeviceGetCount()]"
    )
    assert answer == [DRIVER, f"13.{DRIVER}", 13000, 13000, 2]


@pytest.mark.parametrize("model", sorted(models()))
def test_a_gpu_is_what_its_model_says(nvml_library, tmp_path, model):
    """Name, architecture, capability, PCI ids, memory and power of every model."""
    box = make_box(nvml_library, tmp_path, model)
    spec = host_gpus([{"model": model}], lab="unit", host="a")[0]
    answer = box.nvml(
        START + "p = n.nvmlDeviceGetPciInfo(h)\n"
        "answer = dict(name=n.nvmlDeviceGetName(h), uuid=n.nvmlDeviceGetUUID(h),"
        "serial=n.nvmlDeviceGetSerial(h),"
        "cc='%d.%d' % tuple(n.nvmlDeviceGetCudaComputeCapability(h)), bus=p.busId, device=p.pciDeviceId,"
        "sub=p.pciSubSystemId, total=n.nvmlDeviceGetMemoryInfo(h).total, arch=n.nvmlDeviceGetArchitecture(h),"
        "limit=n.nvmlDeviceGetPowerManagementLimit(h), enforced=n.nvmlDeviceGetEnforcedPowerLimit(h))"
    )
    numbers = {"volta": 5, "turing": 6, "ampere": 7, "ada": 8, "hopper": 9, "blackwell": 10}
    assert answer == {
        "name": spec["name"],
        "uuid": spec["uuid"],
        "serial": spec["serial"],
        "cc": spec["compute_capability"],
        "bus": spec["pci_bus_id"],
        "device": int(spec["pci_device_id"], 16),
        "sub": int(spec["pci_subsystem_id"], 16),
        "total": spec["memory_mib"] * MIB,
        "arch": numbers[spec["arch"]],
        "limit": spec["power_limit_w"] * 1000,
        "enforced": spec["power_limit_w"] * 1000,
    }


def test_every_way_to_a_handle_leads_to_the_same_gpu(box):
    """Index, UUID, PCI bus id in both lengths and serial number."""
    answer = box.nvml(
        "n.nvmlInit()\nh = n.nvmlDeviceGetHandleByIndex(1)\n"
        "handles = [h, n.nvmlDeviceGetHandleByUUID(n.nvmlDeviceGetUUID(h)),"
        "*[n.nvmlDeviceGetHandleByPciBusId(i) for i in ('00000000:11:00.0', '0000:11:00.0')],"
        "n.nvmlDeviceGetHandleBySerial(n.nvmlDeviceGetSerial(h))]\n"
        "answer = [[n.nvmlDeviceGetIndex(x), n.nvmlDeviceGetMinorNumber(x)] for x in handles]"
    )
    assert answer == [[1, 1]] * 5


@pytest.mark.parametrize(
    ("code", "number"),
    [
        ("n.nvmlDeviceGetHandleByIndex(2)", 2),
        ("n.nvmlDeviceGetHandleByUUID('GPU-none')", 6),
        ("n.nvmlDeviceGetHandleByPciBusId('0000:99:00.0')", 6),
        ("n.nvmlDeviceGetMigMode(h)", 3),
        ("n.nvmlDeviceGetTemperature(h, 7)", 2),
        ("n.nvmlDeviceGetFanSpeed(h)", 13),
        ("n.nvmlDeviceRegisterEvents(h, 0x8000, n.nvmlEventSetCreate())", 3),
        ("n.nvmlShutdown(); n.nvmlDeviceGetCount()", 1),
    ],
)
def test_what_cannot_be_answered_has_its_number(box, code, number):
    """Each refusal is the error that NVML documents for it."""
    assert box.error(START + code) == number


def test_a_call_before_init_is_refused(box):
    """The library is loaded by hand, and its first call is not nvmlInit."""
    code = "n._LoadNvmlLibrary()\nn.nvmlDeviceGetCount()"
    assert box.error(code) == 1


def test_init_is_counted(box):
    """After two inits one shutdown leaves the library usable."""
    assert box.nvml("n.nvmlInit(); n.nvmlInit(); n.nvmlShutdown(); answer = n.nvmlDeviceGetCount()") == 2


def test_memory_in_both_versions(box):
    """Version 1 counts what the driver keeps as used, version 2 names it apart; free is the same."""
    claim(box.state, 0, os.getpid(), 1000 * MIB)
    v1, v2 = box.nvml(
        START + "a, b = n.nvmlDeviceGetMemoryInfo(h), n.nvmlDeviceGetMemoryInfo(h, n.nvmlMemory_v2)\n"
        "answer = [[a.total, a.free, a.used], [b.total, b.reserved, b.free, b.used]]"
    )
    total, reserved = 23034 * MIB, 469 * MIB
    assert v2 == [total, reserved, total - reserved - 1000 * MIB, 1000 * MIB]
    assert v1 == [total, v2[2], total - v2[2]]


def test_processes_with_their_memory(box):
    """The process list has who lives, with bytes and without MIG ids; the dead are not in it."""
    claim(box.state, 0, os.getpid(), 700 * MIB)
    with edit(box.state) as state:
        state.gpus[0].procs[4_000_000] = 5 * MIB
    answer = box.nvml(
        START + "answer = [[p.pid, p.usedGpuMemory, p.gpuInstanceId]"
        "for f in (n.nvmlDeviceGetComputeRunningProcesses,"
        "n.nvmlDeviceGetComputeRunningProcesses_v2, n.nvmlDeviceGetComputeRunningProcesses_v3)"
        "for p in f(h)]\n"
        "answer.append(n.nvmlDeviceGetGraphicsRunningProcesses(h))\n"
        "answer.append(n.nvmlDeviceGetComputeRunningProcesses(n.nvmlDeviceGetHandleByIndex(1)))"
    )
    assert answer == [[os.getpid(), 700 * MIB, 0xFFFFFFFF]] * 3 + [[], []]


def test_readings_follow_the_state_at_once(box):
    """A running client sees each change of the state in its next call."""
    with edit(box.state) as state:
        gpu = state.gpus[0]
        gpu.temperature_c, gpu.utilization_percent, gpu.power_mw, gpu.persistence = 66, 93, 71_500, 1
        gpu.extra |= {"clocks_event_reasons": "0x20", "remapped_uncorrectable": "3", "ecc_uncorrected": "5"}
    answer = box.nvml(
        START + "u = n.nvmlDeviceGetUtilizationRates(h)\n"
        "answer = [n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU),"
        "n.nvmlDeviceGetTemperatureV1(h, 0), u.gpu,"
        "n.nvmlDeviceGetPowerUsage(h), n.nvmlDeviceGetPersistenceMode(h),"
        "n.nvmlDeviceGetCurrentClocksEventReasons(h), list(n.nvmlDeviceGetRemappedRows(h)),"
        "n.nvmlDeviceGetTotalEccErrors(h, 1, 0), n.nvmlDeviceGetEccMode(h),"
        "n.nvmlDeviceGetPerformanceState(h)]"
    )
    assert answer == [66, 66, 93, 71_500, 1, 0x20, [0, 3, 0, 0], 5, [1, 1], 0]


def test_a_card_without_ecc_says_so(nvml_library, tmp_path):
    """A consumer card has neither ECC nor remapped rows: not supported, which is no failure."""
    box = make_box(nvml_library, tmp_path, "RTX4090")
    assert box.error(START + "n.nvmlDeviceGetEccMode(h)") == 3
    assert box.error(START + "n.nvmlDeviceGetRemappedRows(h)") == 3


def test_field_values_answer_one_by_one(box):
    """The recovery action is field 230; an unknown field fails alone."""
    box.fault("gpu0", "xid=119")
    answer = box.nvml(
        START + "v = n.nvmlDeviceGetFieldValues(h, [230, 9999, 186])\n"
        "answer = [[x.fieldId, x.nvmlReturn, x.value.uiVal] for x in v]"
    )
    assert answer == [[230, 0, 1], [9999, 3, 0], [186, 0, 12_000]]


def test_no_driver_is_error_9(box):
    """No state file, or a state that says not loaded: the driver is not there."""
    with edit(box.state) as state:
        state.loaded = 0
    assert box.error("n.nvmlInit()") == 9
    box.state.unlink()
    assert box.error("n.nvmlInit()") == 9


def test_no_library_is_error_12(box, tmp_path):
    """Without the library nvidia-ml-py itself says that it's missing."""
    bare = type(box)(tmp_path / "empty", box.state)
    assert bare.error("n.nvmlInit()") == 12


def test_versions_that_differ_are_error_18(box):
    """The library's version against the loaded driver's."""
    box.fault("all", "mismatch")
    assert box.error("n.nvmlInit()") == 18
    box.fault("all", "clear")
    assert box.error("n.nvmlInit()") == 0


def test_the_library_knows_its_version_by_its_file_name(box, nvml_library, tmp_path):
    """As a package installs it, libnvidia-ml.so.1 is a link to a name that ends in the version."""
    folder = tmp_path / "lib"
    folder.mkdir()
    for version, number in (("595.45.04", 18), (DRIVER, 0)):
        (folder / f"libnvidia-ml.so.{version}").write_bytes((nvml_library / "libnvidia-ml.so.1").read_bytes())
        (folder / "libnvidia-ml.so.1").unlink(missing_ok=True)
        (folder / "libnvidia-ml.so.1").symlink_to(f"libnvidia-ml.so.{version}")
        assert type(box)(folder, box.state).error("n.nvmlInit()") == number


def test_a_lost_gpu_is_error_15_and_its_neighbour_works(box):
    """A GPU off the bus fails its own calls only; it is still counted."""
    code = (
        "n.nvmlInit()\nimport subprocess\nh = [n.nvmlDeviceGetHandleByIndex(i) for i in (0, 1)]\n"
        f"subprocess.run({lose(box)!r}, check=True)\n"
        "def ask(x):\n    try:\n        return n.nvmlDeviceGetMemoryInfo(x).total\n"
        "    except n.NVMLError as error:\n        return -error.value\n"
        "answer = [ask(h[0]), ask(h[1]), n.nvmlDeviceGetCount()]"
    )
    assert box.nvml(code) == [-15, 23034 * MIB, 2]
    assert box.error("n.nvmlInit()\nn.nvmlDeviceGetHandleByIndex(0)") == 15


def test_a_hung_gpu_blocks_until_the_fault_is_gone(box):
    """A call into a hung GPU doesn't return, and answers once the fault is removed."""
    box.fault("gpu0", "hang")
    command = [sys.executable, "-c", f"import pynvml as n\n{START}print(n.nvmlDeviceGetName(h))"]
    with subprocess.Popen(command, env=box.env, stdout=subprocess.PIPE, text=True) as client:
        with pytest.raises(subprocess.TimeoutExpired):
            client.wait(0.6)
        box.fault("gpu0", "clear")
        assert client.communicate(timeout=10)[0].strip() == "NVIDIA L4"


def test_an_event_set_times_out_with_error_10(box):
    """Nothing happened is the normal answer."""
    code = (
        START
        + "s = n.nvmlEventSetCreate()\nn.nvmlDeviceRegisterEvents(h, 8, s)\nn.nvmlEventSetWait_v2(s, 50)"
    )
    assert box.error(code) == 10


def test_xids_arrive_as_events(box):
    """Each XID after the registration is one event; what came before is not told."""
    box.fault("gpu0", "xid=31")
    code = (
        "import sys\n" + START + "s = n.nvmlEventSetCreate()\n"
        "n.nvmlDeviceRegisterEvents(h, n.nvmlEventTypeXidCriticalError, s)\n"
        "sys.stderr.write('ready')\nsys.stderr.flush()\n"
        "a = n.nvmlEventSetWait_v2(s, 10000)\n"
        "answer = [a.eventData, a.eventType, n.nvmlDeviceGetIndex(a.device),"
        "n.nvmlDeviceGetSupportedEventTypes(h) & 8]\nn.nvmlEventSetFree(s)\nprint(answer)"
    )
    command = [sys.executable, "-c", f"import pynvml as n\n{code}"]
    with subprocess.Popen(
        command, env=box.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as client:
        assert client.stderr is not None
        assert client.stderr.read(5) == "ready"
        box.fault("gpu0", "xid=94")
        assert client.communicate(timeout=20)[0].strip() == "[94, 8, 0, 8]"


def test_waiting_on_a_lost_gpu_tells_the_xid_first(box):
    """XID 79 is told, then the wait itself says that the GPU is lost."""
    code = (
        START + "import subprocess\ns = n.nvmlEventSetCreate()\nn.nvmlDeviceRegisterEvents(h, 8, s)\n"
        f"subprocess.run({lose(box)!r}, check=True)\n"
        "first = n.nvmlEventSetWait_v2(s, 5000).eventData\n"
        "try:\n    n.nvmlEventSetWait_v2(s, 5000)\n"
        "except n.NVMLError as error:\n    answer = [first, error.value]"
    )
    assert box.nvml(code) == [79, 15]


def test_threads_may_share_the_library(box):
    """Eight threads read while the state changes under them; none sees a number that never was."""
    stop = threading.Event()

    def churn():
        temperature = 30
        while not stop.is_set():
            with edit(box.state) as state:
                temperature = 30 + (temperature + 1) % 40
                state.gpus[0].temperature_c = state.gpus[1].temperature_c = temperature

    writer = threading.Thread(target=churn)
    writer.start()
    try:
        answer = box.nvml(
            START + "from concurrent.futures import ThreadPoolExecutor\n"
            "def read(i):\n    return [n.nvmlDeviceGetTemperature(h, 0) for _ in range(100)]\n"
            "with ThreadPoolExecutor(8) as pool:\n"
            "    got = [t for r in pool.map(read, range(8)) for t in r]\n"
            "answer = [len(got), min(got), max(got)]"
        )
    finally:
        stop.set()
        writer.join()
    assert answer[0] == 800
    assert 30 <= answer[1] <= answer[2] <= 70


def test_error_texts_are_the_real_ones(box):
    """What programs show of an error."""
    answer = box.nvml("n.nvmlInit()\nanswer = [n.nvmlErrorString(x) for x in (0, 4, 9, 10, 15, 18, 999, -1)]")
    assert answer == [
        "Success",
        "Insufficient Permissions",
        "Driver Not Loaded",
        "Timeout",
        "GPU is lost",
        "Driver/library version mismatch",
        "Unknown Error",
        "Unknown Error",
    ]


def test_a_lab_of_one_machine_is_made_by_the_command(tmp_path, nvml_library, box):
    """`python -m lab.gpu init` writes a state that the library reads."""
    profile = tmp_path / "p.yaml"
    profile.write_text("hosts:\n  - {name: b, gpus: [{model: H100}, {model: T4, memory_mib: 8192}]}\n")
    state = tmp_path / "new" / "state"
    command = [sys.executable, "-m", "lab.gpu", "init", "--profile", profile, "--host", "b", "--state", state]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    made = type(box)(nvml_library, state)
    answer = made.nvml(
        "n.nvmlInit()\nanswer = [[n.nvmlDeviceGetName(h), n.nvmlDeviceGetMemoryInfo(h).total >> 20]"
        "for h in map(n.nvmlDeviceGetHandleByIndex, (0, 1))]"
    )
    assert answer == [["NVIDIA H100 80GB HBM3", 81559], ["Tesla T4", 8192]]
    bad = subprocess.run([*command[:-3], "z", *command[-2:]], check=False, capture_output=True, text=True)
    assert bad.returncode == 1
    assert "no host 'z'; it has b" in bad.stderr


def test_the_library_is_compiled_once(nvml_library):
    """A second build of the same sources touches nothing."""
    from lab.gpu import build

    library = nvml_library / "libnvidia-ml.so.1"
    before = library.stat().st_mtime_ns
    assert build.build(nvml_library) == library
    assert library.stat().st_mtime_ns == before
