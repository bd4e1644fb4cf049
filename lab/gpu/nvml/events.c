/* NVML's event sets: an XID in the state file becomes an event. */
#define _DEFAULT_SOURCE
#include "nvml.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EVENT_XID 0x8ULL
#define EVENT_PSTATE 0x4ULL
#define EVENT_CLOCK 0x10ULL
#define EVENT_ECC 0x3ULL

struct watched {
    nvmlDevice_t device;
    unsigned long long types, seen;
};

struct nvmlEventSet_st {
    pthread_mutex_t lock;
    unsigned count;
    struct watched watched[LAB_MAX_GPUS];
};
typedef struct nvmlEventSet_st *nvmlEventSet_t;

struct event_data {
    nvmlDevice_t device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
};

EXPORT nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set)
{
    struct lab_state state;
    nvmlReturn_t answer = lab_enter(&state);
    if (answer != NVML_SUCCESS)
        return answer;
    if (!set)
        return NVML_ERROR_INVALID_ARGUMENT;
    *set = calloc(1, sizeof **set);
    if (!*set)
        return NVML_ERROR_MEMORY;
    pthread_mutex_init(&(*set)->lock, NULL);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set)
{
    if (!set)
        return NVML_ERROR_INVALID_ARGUMENT;
    pthread_mutex_destroy(&set->lock);
    free(set);
    return NVML_SUCCESS;
}

static unsigned long long supported(const struct lab_gpu *gpu)
{
    return EVENT_XID | EVENT_PSTATE | EVENT_CLOCK | (gpu->ecc ? EVENT_ECC : 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types)
{
    struct lab_state state;
    struct lab_gpu *gpu;
    nvmlReturn_t answer = lab_enter_device(device, &state, &gpu);
    if (answer == NVML_SUCCESS && !types)
        answer = NVML_ERROR_INVALID_ARGUMENT;
    if (answer == NVML_SUCCESS)
        *types = supported(gpu);
    return answer;
}

/* Events from before the registration are not told, as in life; one unknown type and none is registered. */
EXPORT nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set)
{
    struct lab_state state;
    struct lab_gpu *gpu;
    nvmlReturn_t answer = lab_enter_device(device, &state, &gpu);
    if (answer != NVML_SUCCESS)
        return answer;
    if (!set)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (types & ~supported(gpu))
        return NVML_ERROR_NOT_SUPPORTED;
    pthread_mutex_lock(&set->lock);
    unsigned at = 0;
    while (at < set->count && set->watched[at].device != device)
        at++;
    if (at < LAB_MAX_GPUS) {
        if (at == set->count) {
            set->watched[at] = (struct watched){device, 0, gpu->xid_count};
            set->count++;
        }
        set->watched[at].types |= types;
    } else {
        answer = NVML_ERROR_MEMORY;
    }
    pthread_mutex_unlock(&set->lock);
    return answer;
}

static const struct lab_gpu *find(const struct lab_state *state, const char *uuid)
{
    for (unsigned i = 0; i < state->gpu_count; i++)
        if (strcmp(state->gpus[i].uuid, uuid) == 0)
            return &state->gpus[i];
    return NULL;
}

/* One look: an XID not yet told, else a lost GPU, else nothing. */
static nvmlReturn_t look(nvmlEventSet_t set, const struct lab_state *state, struct event_data *data)
{
    nvmlReturn_t answer = NVML_ERROR_TIMEOUT;
    pthread_mutex_lock(&set->lock);
    for (unsigned i = 0; i < set->count; i++) {
        struct watched *watched = &set->watched[i];
        const struct lab_gpu *gpu = find(state, watched->device->uuid);
        if (gpu && gpu->xid_count < watched->seen)
            watched->seen = gpu->xid_count; /* the host's state was set anew */
        if (gpu && (watched->types & EVENT_XID) && gpu->xid_count > watched->seen) {
            watched->seen++;
            *data = (struct event_data){watched->device, EVENT_XID, gpu->xid, ~0u, ~0u};
            answer = NVML_SUCCESS;
            break;
        }
        if (!gpu || strcmp(gpu->fault, "lost") == 0)
            answer = NVML_ERROR_GPU_IS_LOST;
    }
    pthread_mutex_unlock(&set->lock);
    return answer;
}

EXPORT nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, struct event_data *data, unsigned timeout_ms)
{
    struct lab_state state;
    struct timespec start, now;
    if (!set || !data)
        return NVML_ERROR_INVALID_ARGUMENT;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (;;) {
        nvmlReturn_t answer = lab_enter(&state);
        if (answer == NVML_SUCCESS)
            answer = look(set, &state, data);
        if (answer != NVML_ERROR_TIMEOUT)
            return answer;
        clock_gettime(CLOCK_MONOTONIC, &now);
        long long waited = (now.tv_sec - start.tv_sec) * 1000LL + (now.tv_nsec - start.tv_nsec) / 1000000;
        if (waited >= (long long)timeout_ms)
            return NVML_ERROR_TIMEOUT;
        lab_pause();
    }
}

EXPORT nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, struct event_data *data, unsigned timeout_ms)
{
    return nvmlEventSetWait_v2(set, data, timeout_ms);
}
