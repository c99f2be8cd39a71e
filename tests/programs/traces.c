// Leaves one trace in its sandbox, of a kind that ls(1) and cat(1) don't make. Exits with 0
// if it has, with 1 if it was refused.
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

// Writes to a page of a file at an offset, after the page has been read: so the kernel has
// mapped it for writing before, and notices nothing.
static int map(const char *path, size_t at) {
    int fd = open(path, O_RDWR);
    if (fd < 0)
        return 1;
    volatile char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED)
        return 1;
    char before = page[at];
    page[at] = before ^ 1;
    return 0;
}

// Says with 0 that the last byte of a file's page isn't what it should be.
static int beyond(const char *path) {
    int fd = open(path, O_RDONLY);
    const volatile char *page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    return fd < 0 || page == MAP_FAILED || page[4095] == 0;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "", *path = argc > 2 ? argv[2] : "/etc/hosts";
    if (!strcmp(what, "map"))
        return map(path, 0);
    if (!strcmp(what, "map-beyond"))
        return map(path, 4095);
    if (!strcmp(what, "beyond"))
        return beyond(path);
    if (!strcmp(what, "attribute"))
        return setxattr(path, "user.trace", "x", 1, 0) != 0;
    if (!strcmp(what, "hole"))
        return fallocate(open(path, O_RDWR), FALLOC_FL_KEEP_SIZE, 1 << 20, 4096) != 0;
    if (!strcmp(what, "priority"))
        return setpriority(PRIO_PROCESS, 1, 19) != 0;
    if (!strcmp(what, "io-priority"))
        return syscall(SYS_ioprio_set, 1, 1, 3 << 13) != 0;
    if (!strcmp(what, "affinity")) {
        unsigned long one = 1;
        return syscall(SYS_sched_setaffinity, 1, sizeof one, &one) < 0;
    }
    if (!strcmp(what, "limit")) {
        struct rlimit limit = {16, 16};
        return prlimit(1, RLIMIT_NOFILE, &limit, NULL) != 0;
    }
    if (!strcmp(what, "signal"))
        return kill(1, SIGUSR1) != 0;
    if (!strcmp(what, "memory")) {
        size_t size = (size_t)atoi(argv[2]) << 20;
        volatile char *memory = memset(malloc(size), 1, size);
        return memory[size - 1] - 1;
    }
    if (!strcmp(what, "burn")) {
        while (clock() < CLOCKS_PER_SEC / 1000 * atoi(argv[2]))
            ;
        return 0;
    }
    fprintf(stderr, "%s: no such trace\n", what);
    return 2;
}
