/* What NVML says about one GPU. */
#define _DEFAULT_SOURCE
#include "nvml.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

/* Every call starts alike: the state and the GPU, or the error to return. */
#define ENTER(ok)                                                        \
    struct lab_state state;                                              \
    struct lab_gpu *gpu;                                                 \
    nvmlReturn_t entered = lab_enter_device(device, &state, &gpu);       \
    if (entered != NVML_SUCCESS)                                         \
        return entered;                                                  \
    if (!(ok))                                                           \
        return NVML_ERROR_INVALID_ARGUMENT

static nvmlReturn_t give_text(const char *text, char *into, unsigned length)
{
    if (strlen(text) + 1 > length)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(into, text);
    return NVML_SUCCESS;
}

#define TEXT_CALL(function, field)                                                     \
    EXPORT nvmlReturn_t function(nvmlDevice_t device, char *into, unsigned length)     \
    {                                                                                  \
        ENTER(into);                                                                   \
        return *gpu->field ? give_text(gpu->field, into, length) : NVML_ERROR_NOT_SUPPORTED; \
    }

TEXT_CALL(nvmlDeviceGetName, name)
TEXT_CALL(nvmlDeviceGetUUID, uuid)
TEXT_CALL(nvmlDeviceGetSerial, serial)

#define NUMBER_CALL(function, type, expression)                    \
    EXPORT nvmlReturn_t function(nvmlDevice_t device, type *into)  \
    {                                                              \
        ENTER(into);                                               \
        *into = (type)(expression);                                \
        return NVML_SUCCESS;                                       \
    }

static unsigned architecture(const struct lab_gpu *gpu)
{
    static const char *const names[] = {
        "", "", "kepler", "maxwell", "pascal", "volta", "turing", "ampere", "ada", "hopper", "blackwell",
    };
    for (unsigned i = 2; i < sizeof names / sizeof *names; i++)
        if (strcasecmp(gpu->arch, names[i]) == 0)
            return i;
    return 0xffffffffu;
}

/* NVML_BRAND_GEFORCE, NVML_BRAND_TESLA for what came before Ampere, else NVML_BRAND_NVIDIA. */
static unsigned brand(const struct lab_gpu *gpu)
{
    if (strstr(gpu->name, "GeForce"))
        return 5;
    return architecture(gpu) < 7 ? 2 : 14;
}

NUMBER_CALL(nvmlDeviceGetIndex, unsigned, gpu - state.gpus)
NUMBER_CALL(nvmlDeviceGetMinorNumber, unsigned, gpu->minor)
NUMBER_CALL(nvmlDeviceGetArchitecture, unsigned, architecture(gpu))
NUMBER_CALL(nvmlDeviceGetBrand, unsigned, brand(gpu))
NUMBER_CALL(nvmlDeviceGetPowerUsage, unsigned, gpu->power_mw)
NUMBER_CALL(nvmlDeviceGetPowerManagementLimit, unsigned, gpu->power_limit_mw)
NUMBER_CALL(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, gpu->power_limit_mw)
NUMBER_CALL(nvmlDeviceGetEnforcedPowerLimit, unsigned, gpu->power_limit_mw)
NUMBER_CALL(nvmlDeviceGetPowerManagementMode, unsigned, 1)
NUMBER_CALL(nvmlDeviceGetPersistenceMode, unsigned, gpu->persistence != 0)
NUMBER_CALL(nvmlDeviceGetPerformanceState, unsigned, gpu->utilization_percent ? 0 : 8)
NUMBER_CALL(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, gpu->clocks_event_reasons)
NUMBER_CALL(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, gpu->clocks_event_reasons)

EXPORT nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
    ENTER(major && minor);
    return sscanf(gpu->compute_capability, "%d.%d", major, minor) == 2 ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

/* ---- PCI ---- */

struct pci_info {
    char bus_id_legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};

static nvmlReturn_t get_pci_info(nvmlDevice_t device, struct pci_info *info)
{
    ENTER(info);
    unsigned function = 0;
    memset(info, 0, sizeof *info);
    if (sscanf(gpu->pci_bus_id, "%x:%x:%x.%x", &info->domain, &info->bus, &info->device, &function) != 4)
        return NVML_ERROR_UNKNOWN;
    info->device_id = gpu->device_id;
    info->subsystem_id = gpu->subsystem_id;
    snprintf(info->bus_id, sizeof info->bus_id, "%08X:%02X:%02X.%X", info->domain, info->bus & 0xff,
             info->device & 0xff, function & 0xf);
    snprintf(info->bus_id_legacy, sizeof info->bus_id_legacy, "%04X:%02X:%02X.%X", info->domain & 0xffff,
             info->bus & 0xff, info->device & 0xff, function & 0xf);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, struct pci_info *info)
{
    return get_pci_info(device, info);
}

/* ---- memory ---- */

struct memory_v1 {
    unsigned long long total, free, used;
};

struct memory_v2 {
    unsigned version;
    unsigned long long total, reserved, free, used;
};

#define MEMORY_V2 0x02000028u

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, struct memory_v1 *memory)
{
    ENTER(memory);
    memory->total = gpu->total;
    memory->free = gpu->free;
    memory->used = gpu->total - gpu->free; /* version 1 counts what is reserved as used */
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, struct memory_v2 *memory)
{
    ENTER(memory);
    if (memory->version != MEMORY_V2)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    memory->total = gpu->total;
    memory->reserved = gpu->reserved;
    memory->free = gpu->free;
    memory->used = gpu->used;
    return NVML_SUCCESS;
}

struct utilization {
    unsigned gpu, memory;
};

EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, struct utilization *rates)
{
    ENTER(rates);
    rates->gpu = gpu->utilization_percent;
    rates->memory = gpu->utilization_percent / 2;
    return NVML_SUCCESS;
}

/* ---- processes ---- */

struct process_v1 {
    unsigned pid;
    unsigned long long bytes;
};

struct process_v2 {
    unsigned pid;
    unsigned long long bytes;
    unsigned gpu_instance, compute_instance;
};

static nvmlReturn_t processes(nvmlDevice_t device, unsigned *count, void *into, int version)
{
    ENTER(count);
    unsigned room = *count;
    *count = gpu->process_count;
    if (gpu->process_count == 0)
        return NVML_SUCCESS;
    if (room < gpu->process_count || !into)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < gpu->process_count; i++) {
        const struct lab_process *process = &gpu->processes[i];
        if (version == 1)
            ((struct process_v1 *)into)[i] = (struct process_v1){process->pid, process->bytes};
        else
            ((struct process_v2 *)into)[i] = (struct process_v2){process->pid, process->bytes, ~0u, ~0u};
    }
    return NVML_SUCCESS;
}

#define PROCESS_CALLS(suffix, version)                                                                            \
    EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses##suffix(nvmlDevice_t device, unsigned *count, void *into) \
    {                                                                                                             \
        return processes(device, count, into, version);                                                           \
    }                                                                                                             \
    EXPORT nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses##suffix(nvmlDevice_t device, unsigned *count, void *into) \
    {                                                                                                             \
        ENTER(count);                                                                                             \
        (void)into;                                                                                               \
        *count = 0;                                                                                               \
        return NVML_SUCCESS;                                                                                      \
    }

PROCESS_CALLS(, 1)
PROCESS_CALLS(_v2, 2)
PROCESS_CALLS(_v3, 2)

/* ---- heat, ECC, MIG ---- */

EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned sensor, unsigned *celsius)
{
    ENTER(celsius && sensor == 0);
    *celsius = gpu->temperature_c;
    return NVML_SUCCESS;
}

struct temperature_v1 {
    unsigned version, sensor;
    int celsius;
};

EXPORT nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, struct temperature_v1 *temperature)
{
    ENTER(temperature && temperature->sensor == 0);
    temperature->celsius = (int)gpu->temperature_c;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, unsigned *current, unsigned *pending)
{
    ENTER(current && pending);
    *current = *pending = gpu->ecc;
    return gpu->ecc ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

EXPORT nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, unsigned kind, unsigned counter,
                                                unsigned long long *count)
{
    ENTER(count && kind < 2 && counter < 2);
    *count = kind == 1 ? gpu->ecc_uncorrected : 0;
    return gpu->ecc ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

EXPORT nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned *correctable, unsigned *uncorrectable,
                                              unsigned *pending, unsigned *failure)
{
    ENTER(correctable && uncorrectable && pending && failure);
    if (!gpu->ecc || architecture(gpu) < 7)
        return NVML_ERROR_NOT_SUPPORTED;
    *correctable = gpu->remapped_correctable;
    *uncorrectable = gpu->remapped_uncorrectable;
    *pending = gpu->remapped_pending;
    *failure = gpu->remapped_failure;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending)
{
    ENTER(current && pending);
    return NVML_ERROR_NOT_SUPPORTED;
}

/* ---- field values ---- */

struct field_value {
    unsigned field, scope;
    long long timestamp, latency;
    unsigned type;
    nvmlReturn_t answer;
    union {
        double real;
        unsigned number;
        unsigned long long size;
    } value;
};

/* NVML_FI_DEV_*: the ones that drover and its users read. */
static int field(const struct lab_gpu *gpu, unsigned id, unsigned *value)
{
    switch (id) {
    case 82: /* MEMORY_TEMP */
        *value = gpu->temperature_c + 4;
        return 1;
    case 142: *value = gpu->remapped_correctable; return gpu->ecc;
    case 143: *value = gpu->remapped_uncorrectable; return gpu->ecc;
    case 144: *value = gpu->remapped_pending; return gpu->ecc;
    case 145: *value = gpu->remapped_failure; return gpu->ecc;
    case 185: /* POWER_AVERAGE */
    case 186: /* POWER_INSTANT */
        *value = gpu->power_mw;
        return 1;
    case 188: /* POWER_MAX_LIMIT, _DEFAULT_, _CURRENT_ */
    case 189:
    case 190: *value = gpu->power_limit_mw; return 1;
    case 230: /* GET_GPU_RECOVERY_ACTION */
        *value = gpu->recovery_action;
        return 1;
    default: return 0;
    }
}

EXPORT nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, struct field_value *values)
{
    ENTER(values && count > 0);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    for (int i = 0; i < count; i++) {
        unsigned number = 0;
        int known = field(gpu, values[i].field, &number);
        values[i].timestamp = (long long)now.tv_sec * 1000000 + now.tv_nsec / 1000;
        values[i].latency = 0;
        values[i].type = 1; /* NVML_VALUE_TYPE_UNSIGNED_INT */
        values[i].value.size = 0;
        values[i].value.number = number;
        values[i].answer = known ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
    }
    return NVML_SUCCESS;
}
