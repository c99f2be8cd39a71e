// One program, many kinds of misbehaviour: the first argument picks one.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void spin(void) {
    for (volatile uint64_t i = 0;; i++) {}
}

static double cpu(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void *spin_thread(void *unused) {
    spin();
    return unused;
}

static void *idle_thread(void *unused) {
    pause();
    return unused;
}

// Touches every page.
static int touch(size_t bytes) {
    for (size_t done = 0; done < bytes; done += 1 << 20) {
        char *block = malloc(1 << 20);
        if (!block) return 1;
        memset(block, 1, 1 << 20);
    }
    return 0;
}

static void *touch_thread(void *bytes) {
    return (void *)(intptr_t)touch((size_t)(intptr_t)bytes);
}

static int fill(const char *path, size_t bytes) {
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    char block[65536];
    memset(block, 1, sizeof block);
    for (size_t done = 0; done < bytes; done += sizeof block)
        if (write(fd, block, sizeof block) < 0) return errno == ENOSPC ? 28 : 1;
    return 0;
}

// Not inlined, and the array is used, so that the stack really grows.
static __attribute__((noinline)) int recurse(long depth) {
    volatile char frame[1024];
    frame[depth % sizeof frame] = 1;
    return depth == 0 ? frame[0] - 1 + 1 - frame[0] : recurse(depth - 1) + frame[depth % sizeof frame] - 1;
}

static void on_signal(int number) { (void)number; }

int main(int count, char **words) {
    const char *kind = count > 1 ? words[1] : "";
    long n = count > 2 ? atol(words[2]) : 0;
    if (!strcmp(kind, "exit")) return (int)n;
    if (!strcmp(kind, "raise")) { raise((int)n); return 99; }
    if (!strcmp(kind, "abort")) abort();
    if (!strcmp(kind, "segv")) return *(volatile int *)0;
    if (!strcmp(kind, "fpe")) { volatile int one = 1, zero = 0; volatile int result = one / zero; return result; }
    if (!strcmp(kind, "ill")) __builtin_trap();
    if (!strcmp(kind, "spin")) spin();
    if (!strcmp(kind, "burn")) { while (cpu() < n / 1000.0) {} return 0; }
    if (!strcmp(kind, "syscalls")) for (;;) getppid();
    if (!strcmp(kind, "threads_spin")) {
        for (long i = 1; i < n; i++) { pthread_t t; pthread_create(&t, 0, spin_thread, 0); }
        spin();
    }
    if (!strcmp(kind, "child_spins")) { if (!fork()) spin(); wait(0); return 0; }
    if (!strcmp(kind, "daemon_spins")) {
        if (!fork()) { setsid(); if (!fork()) spin(); _exit(0); }
        wait(0);
        pause();
    }
    if (!strcmp(kind, "daemon_holds_stdout")) {
        if (!fork()) { setsid(); if (!fork()) { pause(); } _exit(0); }
        wait(0);
        puts("done");
        return 0;
    }
    if (!strcmp(kind, "sleep")) { sleep((unsigned)n); return 0; }
    if (!strcmp(kind, "stop")) { raise(SIGSTOP); return 0; }
    if (!strcmp(kind, "stubborn")) {
        for (int s = 1; s < 32; s++) signal(s, SIG_IGN);
        spin();
    }
    if (!strcmp(kind, "catches_xcpu")) { signal(SIGXCPU, on_signal); spin(); }
    if (!strcmp(kind, "malloc")) return touch((size_t)n << 20);
    if (!strcmp(kind, "mmap")) {
        char *at = mmap(0, (size_t)n << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) return 1;
        memset(at, 1, (size_t)n << 20);
        return 0;
    }
    if (!strcmp(kind, "reserve")) return mmap(0, (size_t)n << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) == MAP_FAILED;
    if (!strcmp(kind, "children_touch")) {
        for (int i = 0; i < 4; i++) if (!fork()) { int r = touch((size_t)n << 18); sleep(1); _exit(r); }
        while (wait(0) > 0) {}
        return 0;
    }
    if (!strcmp(kind, "threads_touch")) {
        pthread_t t[4];
        for (int i = 0; i < 4; i++) pthread_create(&t[i], 0, touch_thread, (void *)(intptr_t)(n << 18));
        for (int i = 0; i < 4; i++) pthread_join(t[i], 0);
        return 0;
    }
    if (!strcmp(kind, "child_dies_of_memory")) {
        if (!fork()) _exit(touch((size_t)n << 20));
        wait(0);
        /* On cgroup v1 somebody has to be told of it, and may be late. */
        usleep(300000);
        puts("survived");
        return 0;
    }
    if (!strcmp(kind, "fill")) return fill(words[3], (size_t)n << 20);
    if (!strcmp(kind, "sparse")) {
        int fd = open("/tmp/sparse", O_CREAT | O_RDWR, 0600);
        return ftruncate(fd, (off_t)n << 20) || write(fd, "x", 1) != 1;
    }
    if (!strcmp(kind, "many_files")) {
        char name[64];
        for (long i = 0; i < n; i++) {
            snprintf(name, sizeof name, "/tmp/f%ld", i);
            int fd = open(name, O_CREAT | O_WRONLY, 0600);
            if (fd < 0) return errno == ENOSPC ? 28 : 1;
            if (write(fd, "x", 1) != 1) return 2;
            close(fd);
        }
        return 0;
    }
    if (!strcmp(kind, "read")) {
        char block[65536];
        int fd = open(words[2], O_RDONLY);
        while (read(fd, block, sizeof block) > 0) {}
        return fd < 0;
    }
    if (!strcmp(kind, "fork_until_eagain")) {
        for (int made = 0; made < 100000; made++) {
            pid_t pid = fork();
            if (pid < 0) { printf("%d\n", made); return errno == EAGAIN ? 0 : 1; }
            if (!pid) { pause(); _exit(0); }
        }
        return 2;
    }
    if (!strcmp(kind, "threads_until_eagain")) {
        for (int made = 0; made < 100000; made++) {
            pthread_t t;
            int r = pthread_create(&t, 0, idle_thread, 0);
            if (r) { printf("%d\n", made); return r == EAGAIN ? 0 : 1; }
        }
        return 2;
    }
    if (!strcmp(kind, "forkbomb")) for (;;) fork();
    if (!strcmp(kind, "write")) {
        char block[65536];
        memset(block, 'x', sizeof block);
        for (long left = n; left > 0; left -= sizeof block)
            if (write(1, block, left < (long)sizeof block ? (size_t)left : sizeof block) < 0) return 1;
        return 0;
    }
    if (!strcmp(kind, "count")) {
        char block[65536];
        long total = 0;
        ssize_t r;
        while ((r = read(0, block, sizeof block)) > 0) total += r;
        printf("%ld\n", total);
        return 0;
    }
    if (!strcmp(kind, "read_some")) { char c[10]; return read(0, c, sizeof c) != 10; }
    if (!strcmp(kind, "echo")) {
        char block[65536];
        ssize_t r;
        while ((r = read(0, block, sizeof block)) > 0)
            if (write(1, block, (size_t)r) != r || write(2, block, (size_t)r) != r) return 1;
        return 0;
    }
    if (!strcmp(kind, "recurse")) return recurse(n);
    if (!strcmp(kind, "open_files")) {
        int made = 0;
        while (dup(0) >= 0) made++;
        printf("%d\n", made + 3);
        return errno != EMFILE;
    }
    if (!strcmp(kind, "limit_of_stack")) {
        struct rlimit l;
        getrlimit(RLIMIT_STACK, &l);
        printf("%lld\n", (long long)l.rlim_cur);
        return 0;
    }
    fprintf(stderr, "no such workload: %s\n", kind);
    return 98;
}
