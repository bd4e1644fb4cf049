/* The part of NVML's ABI that crosses files here: handles, and the check that every call starts with. */
#ifndef LAB_NVML_H
#define LAB_NVML_H

#include "state.h"

#define EXPORT __attribute__((visibility("default")))

/* What a caller holds: it stays with the GPU's UUID, whatever the order of the GPUs becomes. */
struct nvmlDevice_st {
    char uuid[LAB_TEXT];
};
typedef struct nvmlDevice_st *nvmlDevice_t;
typedef int nvmlReturn_t;

/* The state, if the library is initialised and the driver is there. */
nvmlReturn_t lab_enter(struct lab_state *state);
/* As lab_enter, then the GPU of a handle: blocks while the GPU hangs, fails when it is lost. */
nvmlReturn_t lab_enter_device(nvmlDevice_t device, struct lab_state *state, struct lab_gpu **gpu);
/* The handle of a GPU; the same for every caller. */
nvmlDevice_t lab_handle(const char *uuid);
/* Sleep between two looks at the state. */
void lab_pause(void);

#endif
