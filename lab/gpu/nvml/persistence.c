/* nvmlDeviceSetPersistenceMode: the one call here that changes the state. */
#define _DEFAULT_SOURCE
#include "nvml.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static int copy_lines(const char *from, const char *to, const char *key, unsigned value)
{
    char line[1024];
    FILE *in = fopen(from, "re"), *out = in ? fopen(to, "we") : NULL;
    int good = out != NULL;
    while (good && fgets(line, sizeof line, in))
        if (strncmp(line, key, strlen(key)) != 0)
            good = fputs(line, out) >= 0;
    if (good)
        good = fprintf(out, "%s%u\n", key, value) > 0 && fchmod(fileno(out), 0666) == 0;
    if (out && fclose(out) != 0)
        good = 0;
    if (in)
        fclose(in);
    return good;
}

EXPORT nvmlReturn_t nvmlDeviceSetPersistenceMode(nvmlDevice_t device, unsigned mode)
{
    struct lab_state state;
    struct lab_gpu *gpu;
    char lock[PATH_MAX], fresh[PATH_MAX], key[64];
    nvmlReturn_t answer = lab_enter_device(device, &state, &gpu);
    if (answer != NVML_SUCCESS)
        return answer;
    if (mode > 1)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (geteuid() != 0)
        return NVML_ERROR_NO_PERMISSION;
    const char *path = lab_path();
    snprintf(lock, sizeof lock, "%s.lock", path);
    snprintf(fresh, sizeof fresh, "%s.%d.new", path, (int)getpid());
    snprintf(key, sizeof key, "gpu.%u.persistence=", gpu->index);
    int fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0)
        return NVML_ERROR_UNKNOWN;
    answer = NVML_ERROR_UNKNOWN;
    if (flock(fd, LOCK_EX) == 0 && copy_lines(path, fresh, key, mode) && rename(fresh, path) == 0)
        answer = NVML_SUCCESS;
    else
        unlink(fresh);
    close(fd);
    return answer;
}
