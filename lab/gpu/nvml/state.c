/* Reads the state file of the simulated GPUs. */
#define _DEFAULT_SOURCE
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* A process that is gone, or a zombie, holds no memory. */
static int is_alive(long pid)
{
    char path[64], text[512];
    if (pid <= 0 || (kill((pid_t)pid, 0) != 0 && errno == ESRCH))
        return 0;
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 1; /* hidden from this user, but kill() has just found it */
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    if (got <= 0)
        return 0;
    text[got] = 0;
    const char *after_name = strrchr(text, ')');
    return !(after_name && after_name[1] == ' ' && (after_name[2] == 'Z' || after_name[2] == 'X'));
}

static int is_held(const char *value)
{
    const char *at = strchr(value, '@');
    if (!at)
        return 0;
    if (strncmp(at, "@pid:", 5) == 0)
        return is_alive(strtol(at + 5, NULL, 10));
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9 < strtod(at + 1, NULL);
}

static void take_memory(struct lab_gpu *gpu, const char *name, const char *value)
{
    unsigned long long bytes = strtoull(value, NULL, 10);
    if (strncmp(name, "held.", 5) == 0) {
        if (is_held(value))
            gpu->used += bytes;
        return;
    }
    long pid = strtol(name + 5, NULL, 10);
    if (!is_alive(pid))
        return;
    gpu->used += bytes;
    if (gpu->process_count < LAB_MAX_PROCS) {
        gpu->processes[gpu->process_count].pid = (unsigned)pid;
        gpu->processes[gpu->process_count++].bytes = bytes;
    }
}

static void set_gpu(struct lab_gpu *gpu, const char *name, const char *value)
{
    const struct { const char *name; char *into; } texts[] = {
        {"uuid", gpu->uuid}, {"name", gpu->name}, {"arch", gpu->arch}, {"pci_bus_id", gpu->pci_bus_id},
        {"compute_capability", gpu->compute_capability}, {"serial", gpu->serial}, {"fault", gpu->fault},
    };
    const struct { const char *name; unsigned *into; } numbers[] = {
        {"pci_device_id", &gpu->device_id}, {"pci_subsystem_id", &gpu->subsystem_id}, {"minor", &gpu->minor},
        {"temperature_c", &gpu->temperature_c}, {"power_mw", &gpu->power_mw}, {"ecc", &gpu->ecc},
        {"power_limit_mw", &gpu->power_limit_mw}, {"utilization_percent", &gpu->utilization_percent},
        {"persistence", &gpu->persistence}, {"recovery_action", &gpu->recovery_action}, {"xid", &gpu->xid},
        {"clocks_event_reasons", &gpu->clocks_event_reasons},
        {"remapped_correctable", &gpu->remapped_correctable}, {"remapped_pending", &gpu->remapped_pending},
        {"remapped_uncorrectable", &gpu->remapped_uncorrectable}, {"remapped_failure", &gpu->remapped_failure},
    };
    const struct { const char *name; unsigned long long *into; } sizes[] = {
        {"memory_total_bytes", &gpu->total}, {"memory_reserved_bytes", &gpu->reserved},
        {"xid_count", &gpu->xid_count}, {"ecc_uncorrected", &gpu->ecc_uncorrected},
    };
    if (strncmp(name, "proc.", 5) == 0 || strncmp(name, "held.", 5) == 0) {
        take_memory(gpu, name, value);
        return;
    }
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (strcmp(name, texts[i].name) == 0)
            snprintf(texts[i].into, LAB_TEXT, "%s", value);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (strcmp(name, numbers[i].name) == 0)
            *numbers[i].into = (unsigned)strtoul(value, NULL, 0);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (strcmp(name, sizes[i].name) == 0)
            *sizes[i].into = strtoull(value, NULL, 10);
}

static void set_key(struct lab_state *state, char *key, const char *value)
{
    if (strcmp(key, "driver_version") == 0)
        snprintf(state->driver, sizeof state->driver, "%s", value);
    else if (strcmp(key, "library_version") == 0)
        snprintf(state->library, sizeof state->library, "%s", value);
    else if (strcmp(key, "cuda_version") == 0)
        state->cuda = atoi(value);
    else if (strcmp(key, "loaded") == 0)
        state->loaded = atoi(value);
    else if (strncmp(key, "gpu.", 4) == 0) {
        char *end;
        unsigned long index = strtoul(key + 4, &end, 10);
        if (*end != '.' || index >= LAB_MAX_GPUS)
            return;
        struct lab_gpu *gpu = &state->gpus[index];
        if (!gpu->present) {
            gpu->present = 1;
            gpu->index = gpu->minor = (unsigned)index;
        }
        set_gpu(gpu, end + 1, value);
    }
}

const char *lab_path(void)
{
    const char *path = getenv("LABGPU_STATE");
    return path && *path ? path : "/run/labgpu/state";
}

static int read_file(char **text)
{
    int fd = open(lab_path(), O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == EACCES ? NVML_ERROR_NO_PERMISSION : NVML_ERROR_DRIVER_NOT_LOADED;
    struct stat info;
    int answer = NVML_ERROR_UNKNOWN;
    if (fstat(fd, &info) == 0 && (*text = malloc((size_t)info.st_size + 1))) {
        ssize_t got = read(fd, *text, (size_t)info.st_size);
        (*text)[got > 0 ? got : 0] = 0;
        answer = NVML_SUCCESS;
    }
    close(fd);
    return answer;
}

int lab_read(struct lab_state *state)
{
    char *text = NULL, *rest = NULL;
    memset(state, 0, sizeof *state);
    state->loaded = 1;
    int answer = read_file(&text);
    if (answer != NVML_SUCCESS)
        return answer;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char *equals = strchr(line, '=');
        if (!equals || *line == '#')
            continue;
        *equals = 0;
        set_key(state, line, equals + 1);
    }
    free(text);
    for (unsigned i = 0; i < LAB_MAX_GPUS; i++) {
        struct lab_gpu *gpu = &state->gpus[i];
        if (!gpu->present)
            continue;
        unsigned long long taken = gpu->reserved + gpu->used;
        gpu->free = gpu->total > taken ? gpu->total - taken : 0;
        if (state->gpu_count != i)
            state->gpus[state->gpu_count] = *gpu;
        state->gpu_count++;
    }
    if (!state->loaded || !*state->driver)
        return NVML_ERROR_DRIVER_NOT_LOADED;
    if (!*state->library)
        snprintf(state->library, sizeof state->library, "%s", *lab_own_version() ? lab_own_version() : state->driver);
    return strcmp(state->library, state->driver) == 0 ? NVML_SUCCESS : NVML_ERROR_LIB_RM_VERSION_MISMATCH;
}
