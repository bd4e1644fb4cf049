/* libnvidia-ml.so.1 over simulated GPUs: the ABI of NVML for what its Python bindings and nvidia-smi call. */
#define _DEFAULT_SOURCE
#include "nvml.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

static atomic_int references;
static struct nvmlDevice_st handles[LAB_MAX_GPUS * 2];
static pthread_mutex_t handles_lock = PTHREAD_MUTEX_INITIALIZER;

void lab_pause(void)
{
    struct timespec twenty_ms = {0, 20 * 1000 * 1000};
    nanosleep(&twenty_ms, NULL);
}

nvmlDevice_t lab_handle(const char *uuid)
{
    nvmlDevice_t found = NULL;
    pthread_mutex_lock(&handles_lock);
    for (unsigned i = 0; i < sizeof handles / sizeof *handles && !found; i++) {
        if (!*handles[i].uuid)
            snprintf(handles[i].uuid, LAB_TEXT, "%s", uuid);
        if (strcmp(handles[i].uuid, uuid) == 0)
            found = &handles[i];
    }
    pthread_mutex_unlock(&handles_lock);
    return found;
}

/* On a lab host the library needs the device node, as the real one does: a sandbox that hides the node, or denies
 * it, is then seen here. It is never opened: a real driver may be behind it. With LABGPU_STATE there is none. */
static nvmlReturn_t may_open(const char *node)
{
    const char *path = getenv("LABGPU_STATE");
    if (path && *path)
        return NVML_SUCCESS;
    if (access(node, R_OK | W_OK) == 0)
        return NVML_SUCCESS;
    if (errno == ENOENT)
        return NVML_ERROR_DRIVER_NOT_LOADED;
    return errno == EACCES || errno == EPERM ? NVML_ERROR_NO_PERMISSION : NVML_SUCCESS;
}

nvmlReturn_t lab_enter(struct lab_state *state)
{
    return atomic_load(&references) > 0 ? lab_read(state) : NVML_ERROR_UNINITIALIZED;
}

static struct lab_gpu *find(struct lab_state *state, const char *uuid)
{
    for (unsigned i = 0; i < state->gpu_count; i++)
        if (strcmp(state->gpus[i].uuid, uuid) == 0)
            return &state->gpus[i];
    return NULL;
}

nvmlReturn_t lab_enter_device(nvmlDevice_t device, struct lab_state *state, struct lab_gpu **gpu)
{
    for (;;) {
        nvmlReturn_t answer = lab_enter(state);
        if (answer != NVML_SUCCESS)
            return answer;
        if (device < handles || device >= handles + sizeof handles / sizeof *handles || !*device->uuid)
            return NVML_ERROR_INVALID_ARGUMENT;
        *gpu = find(state, device->uuid);
        if (!*gpu || strcmp((*gpu)->fault, "lost") == 0)
            return NVML_ERROR_GPU_IS_LOST;
        if (strcmp((*gpu)->fault, "hang") != 0)
            return NVML_SUCCESS;
        lab_pause();
    }
}

/* ---- the library itself ---- */

EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned flags)
{
    struct lab_state state;
    (void)flags;
    nvmlReturn_t answer = lab_read(&state);
    if (answer == NVML_SUCCESS)
        answer = may_open("/dev/nvidiactl");
    if (answer == NVML_SUCCESS)
        atomic_fetch_add(&references, 1);
    return answer;
}

EXPORT nvmlReturn_t nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

EXPORT nvmlReturn_t nvmlInit(void)
{
    return nvmlInitWithFlags(0);
}

EXPORT nvmlReturn_t nvmlShutdown(void)
{
    if (atomic_fetch_sub(&references, 1) > 0)
        return NVML_SUCCESS;
    atomic_fetch_add(&references, 1);
    return NVML_ERROR_UNINITIALIZED;
}

EXPORT const char *nvmlErrorString(nvmlReturn_t result)
{
    static const char *const texts[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions",
        "Already Initialized", "Not Found", "Insufficient Size", "Insufficient External Power",
        "Driver Not Loaded", "Timeout", "Interrupt Request Issue", "NVML Shared Library Not Found",
        "Function Not Found", "Corrupted infoROM", "GPU is lost", "GPU requires reset",
        "The operating system has blocked the request.", "Driver/library version mismatch", "In use by another client",
        "Insufficient Memory", "No data", "ECC is not supported with vGPU", "Insufficient Resources",
        "Frequency Not Supported", "Argument version mismatch", "Deprecated", "System is not ready", "GPU not found",
    };
    if (result >= 0 && (size_t)result < sizeof texts / sizeof *texts)
        return texts[result];
    return "Unknown Error";
}

static nvmlReturn_t give_text(const char *text, char *into, unsigned length)
{
    if (!into)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (strlen(text) + 1 > length)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(into, text);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned length)
{
    struct lab_state state;
    nvmlReturn_t answer = lab_enter(&state);
    return answer == NVML_SUCCESS ? give_text(state.driver, version, length) : answer;
}

/* Works before nvmlInit too: it says what the library is, not what the driver is. */
EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned length)
{
    struct lab_state state;
    char text[LAB_TEXT + 8];
    lab_read(&state);
    const char *own = *state.library ? state.library : lab_own_version();
    snprintf(text, sizeof text, "%d.%s", state.cuda >= 1000 ? state.cuda / 1000 : 13, *own ? own : "0.0");
    return give_text(text, version, length);
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    struct lab_state state;
    nvmlReturn_t answer = lab_enter(&state);
    if (answer == NVML_SUCCESS && !version)
        answer = NVML_ERROR_INVALID_ARGUMENT;
    if (answer == NVML_SUCCESS)
        *version = state.cuda;
    return answer;
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version)
{
    return nvmlSystemGetCudaDriverVersion_v2(version);
}

EXPORT nvmlReturn_t nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length)
{
    char path[64], text[1024] = "";
    struct lab_state state;
    nvmlReturn_t answer = lab_enter(&state);
    if (answer != NVML_SUCCESS)
        return answer;
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NVML_ERROR_NOT_FOUND;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    return got > 0 ? give_text(text, name, length) : NVML_ERROR_NOT_FOUND;
}

/* ---- handles ---- */

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count)
{
    struct lab_state state;
    nvmlReturn_t answer = lab_enter(&state);
    if (answer == NVML_SUCCESS && !count)
        answer = NVML_ERROR_INVALID_ARGUMENT;
    if (answer == NVML_SUCCESS)
        *count = state.gpu_count;
    return answer;
}

EXPORT nvmlReturn_t nvmlDeviceGetCount(unsigned *count)
{
    return nvmlDeviceGetCount_v2(count);
}

static int same_bus_id(const char *left, const char *right)
{
    unsigned a[4], b[4];
    return sscanf(left, "%x:%x:%x.%x", &a[0], &a[1], &a[2], &a[3]) == 4
           && sscanf(right, "%x:%x:%x.%x", &b[0], &b[1], &b[2], &b[3]) == 4 && memcmp(a, b, sizeof a) == 0;
}

enum key { BY_INDEX, BY_UUID, BY_BUS_ID, BY_SERIAL };

static nvmlReturn_t get_handle(enum key by, unsigned index, const char *text, nvmlDevice_t *device)
{
    struct lab_state state;
    char node[32];
    nvmlReturn_t answer = lab_enter(&state);
    if (answer != NVML_SUCCESS)
        return answer;
    if (!device || (by != BY_INDEX && !text))
        return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned i = 0; i < state.gpu_count; i++) {
        struct lab_gpu *gpu = &state.gpus[i];
        if ((by == BY_INDEX && i == index) || (by == BY_UUID && strcasecmp(gpu->uuid, text) == 0)
            || (by == BY_BUS_ID && same_bus_id(gpu->pci_bus_id, text))
            || (by == BY_SERIAL && strcmp(gpu->serial, text) == 0)) {
            *device = lab_handle(gpu->uuid);
            snprintf(node, sizeof node, "/dev/nvidia%u", gpu->minor);
            answer = lab_enter_device(*device, &state, &gpu);
            return answer == NVML_SUCCESS ? may_open(node) : answer;
        }
    }
    return by == BY_INDEX ? NVML_ERROR_INVALID_ARGUMENT : NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device)
{
    return get_handle(BY_INDEX, index, NULL, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned index, nvmlDevice_t *device)
{
    return get_handle(BY_INDEX, index, NULL, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    return get_handle(BY_UUID, 0, uuid, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device)
{
    return get_handle(BY_BUS_ID, 0, bus_id, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *bus_id, nvmlDevice_t *device)
{
    return get_handle(BY_BUS_ID, 0, bus_id, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device)
{
    return get_handle(BY_SERIAL, 0, serial, device);
}
