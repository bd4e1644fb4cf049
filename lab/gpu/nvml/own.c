/* Which version this library is. The only file with _GNU_SOURCE: newer C libraries give programs that define it
 * symbols that the hosts' C library lacks. */
#define _GNU_SOURCE
#include "state.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char own_version[LAB_TEXT];

/* Settled when the library is loaded: an upgrade replaces the file under running processes, and those keep the
 * old library. */
__attribute__((constructor)) static void note_own_version(void)
{
    Dl_info info;
    char resolved[PATH_MAX];
    if (!dladdr((void *)&lab_read, &info) || !info.dli_fname || !realpath(info.dli_fname, resolved))
        return;
    const char *suffix = strstr(resolved, "libnvidia-ml.so.");
    if (suffix && strchr(suffix + 16, '.'))
        snprintf(own_version, sizeof own_version, "%s", suffix + 16);
}

const char *lab_own_version(void)
{
    return own_version;
}
