/* The simulated GPUs' state, as the library reads it. The file's form is described in lab/gpu/state.py. */
#ifndef LAB_STATE_H
#define LAB_STATE_H

#define LAB_MAX_GPUS 32
#define LAB_MAX_PROCS 128
#define LAB_TEXT 96

/* nvmlReturn_t: the values that are answered here. */
enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NO_PERMISSION = 4,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_DRIVER_NOT_LOADED = 9,
    NVML_ERROR_TIMEOUT = 10,
    NVML_ERROR_GPU_IS_LOST = 15,
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18,
    NVML_ERROR_MEMORY = 20,
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25,
    NVML_ERROR_UNKNOWN = 999
};

struct lab_process {
    unsigned pid;
    unsigned long long bytes;
};

struct lab_gpu {
    int present;
    unsigned index; /* as the file numbers it */
    unsigned minor;
    char uuid[LAB_TEXT], name[LAB_TEXT], arch[LAB_TEXT], compute_capability[LAB_TEXT];
    char pci_bus_id[LAB_TEXT], serial[LAB_TEXT], fault[LAB_TEXT];
    unsigned long long total, reserved, used, free;
    unsigned device_id, subsystem_id;
    unsigned temperature_c, power_mw, power_limit_mw, utilization_percent, persistence, ecc;
    unsigned recovery_action, xid, clocks_event_reasons;
    unsigned remapped_correctable, remapped_uncorrectable, remapped_pending, remapped_failure;
    unsigned long long xid_count, ecc_uncorrected;
    unsigned process_count;
    struct lab_process processes[LAB_MAX_PROCS];
};

struct lab_state {
    char driver[LAB_TEXT], library[LAB_TEXT];
    int cuda, loaded;
    unsigned gpu_count;
    struct lab_gpu gpus[LAB_MAX_GPUS]; /* in the order of NVML's index, without gaps */
};

/* Where the state lies. */
const char *lab_path(void);
/* Read the state; an nvmlReturn_t. Every call sees the file as it is then. */
int lab_read(struct lab_state *state);
/* The version in this library's own file name, or "" when it is called libnvidia-ml.so.1 only. */
const char *lab_own_version(void);

#endif
