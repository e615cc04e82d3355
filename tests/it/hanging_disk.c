/* A disk that stops to answer, for a service that is started with this in LD_PRELOAD: while the file that HANG_SYNC names is there, no
   sync of a file returns; while the one that HANG_LOOK names is there, no look at a file of the store returns either. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void hang_while(const char *variable) {
    const char *file = getenv(variable);
    while (file != NULL && access(file, F_OK) == 0)
        usleep(10000);
}

int fdatasync(int file) {
    hang_while("HANG_SYNC");
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return real(file);
}

int statx(int directory, const char *restrict path, int flags, unsigned int mask, struct statx *restrict found) {
    if (path != NULL && strstr(path, "owner.lock") != NULL)
        hang_while("HANG_LOOK");
    int (*real)(int, const char *, int, unsigned int, struct statx *) =
        (int (*)(int, const char *, int, unsigned int, struct statx *))dlsym(RTLD_NEXT, "statx");
    return real(directory, path, flags, mask, found);
}
