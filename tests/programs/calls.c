// Makes system calls in ways that a policy must see: the first argument picks one.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static long number;
static void *call(void *unused) { (void)unused; syscall(number, -1L, -1L, -1L, -1L, -1L, -1L); return 0; }
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec; }
int main(int count, char **words) {
    const char *how = words[1];
    if (!strcmp(how, "errno")) {
        for (int i = 2; i < count; i++) {
            long result = syscall(atol(words[i]), -1L, -1L, -1L, -1L, -1L, -1L);
            printf("%d\n", result < 0 ? errno : 0);
        }
        return 0;
    }
    if (!strcmp(how, "socket")) {
        int fd = socket(atoi(words[2]), atoi(words[3]), atoi(words[4]));
        printf("%d\n", fd < 0 ? errno : 0);
        return 0;
    }
    if (!strcmp(how, "sigsys")) { raise(SIGSYS); return 1; }
    if (!strcmp(how, "time")) {
        double best[2] = {1e9, 1e9};
        for (int round = 0; round < 200; round++) {
            for (int which = 0; which < 2; which++) {
                double begin = now();
                for (int i = 0; i < 1000; i++) syscall(which ? SYS_swapoff : SYS_getppid, 0);
                double each = (now() - begin) / 1000;
                if (each < best[which]) best[which] = each;
            }
        }
        printf("%.0f %.0f\n", best[0], best[1]);
        return 0;
    }
    // Installs the filter that it reads, each time in a process of its own; the least
    // time in nanoseconds.
    if (!strcmp(how, "install")) {
        static struct sock_filter program[4096];
        size_t length = fread(program, sizeof *program, 4096, stdin);
        struct sock_fprog header = {length, program};
        double best = 1e9;
        for (int round = 0; round < 200; round++) {
            int ends[2];
            if (pipe(ends)) return 1;
            if (!fork()) {
                prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                double begin = now();
                long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &header);
                double took = now() - begin;
                if (!result && write(ends[1], &took, sizeof took) < 0) _exit(1);
                _exit(0);
            }
            close(ends[1]);
            double took = 1e9;
            if (read(ends[0], &took, sizeof took) < 0) return 1;
            close(ends[0]);
            wait(0);
            if (took < best) best = took;
        }
        printf("%.0f\n", best);
        return 0;
    }
    number = atol(words[2]);
    if (!strcmp(how, "call")) { call(0); return 1; }
    if (!strcmp(how, "thread")) { pthread_t t; pthread_create(&t, 0, call, 0); pthread_join(t, 0); return 1; }
    if (!strcmp(how, "child")) { if (!fork()) { setsid(); call(0); _exit(1); } wait(0); return 1; }
    // Many at once, in all their threads.
    if (!strcmp(how, "flood")) {
        for (int i = 0; i < 20; i++) if (!fork()) for (;;) call(0);
        for (;;) call(0);
    }
#ifdef __x86_64__
    // getpid by the i386 and by the x32 ABI.
    if (!strcmp(how, "i386")) { long r; __asm__ volatile("int $0x80" : "=a"(r) : "a"(20) : "memory", "r8", "r9", "r10", "r11"); return r > 0 ? 0 : 1; }
    if (!strcmp(how, "x32")) { syscall(0x40000000L | 39); return 0; }
#endif
    return 2;
}
