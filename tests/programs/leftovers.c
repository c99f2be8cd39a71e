// Says what another run has left, and leaves all kinds of things for the next one.
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define KEY 0xc0ffe

static void found(const char *what) { printf("found %s\n", what); }

static void file(const char *path) {
    struct stat st;
    if (lstat(path, &st) == 0)
        found(path);
    int fd = open(path, O_CREAT | O_WRONLY, 0666);
    if (fd < 0 || write(fd, "left", 4) != 4)
        printf("cannot leave %s: %s\n", path, strerror(errno));
    close(fd);
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        file(argv[i]);

    if (shmget(KEY, 4096, 0) >= 0) found("System V memory");
    if (shmget(KEY, 4096, IPC_CREAT | 0666) < 0) perror("shmget");
    if (msgget(KEY, 0) >= 0) found("a System V queue");
    if (msgget(KEY, IPC_CREAT | 0666) < 0) perror("msgget");
    if (semget(KEY, 1, 0) >= 0) found("a System V semaphore");
    if (semget(KEY, 1, IPC_CREAT | 0666) < 0) perror("semget");

    // mq_open(3) without librt; it wants no leading slash.
    if (syscall(SYS_mq_open, "left", O_RDONLY, 0, NULL) >= 0) found("a POSIX queue");
    if (syscall(SYS_mq_open, "left", O_RDWR | O_CREAT, 0666, NULL) < 0) perror("mq_open");

    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "\0left"};
    socklen_t length = offsetof(struct sockaddr_un, sun_path) + 5;
    int listener = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(client, (struct sockaddr *)&address, length) == 0) found("an abstract socket");
    if (bind(listener, (struct sockaddr *)&address, length) != 0 || listen(listener, 1) != 0) perror("bind");

    // KEYCTL_SEARCH in the session's and the user's keyring, then a key in both.
    const long keyrings[] = {-3, -4};
    for (int i = 0; i < 2; i++) {
        if (syscall(SYS_keyctl, 10, keyrings[i], "user", "left", 0) >= 0) found("a key");
        if (syscall(SYS_add_key, "user", "left", "x", 1, keyrings[i]) < 0) perror("add_key");
    }

    // Somebody who stays.
    if (fork() == 0) {
        setsid();
        pause();
    }
    puts("done");
    return 0;
}
